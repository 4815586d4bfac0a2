"""`ngpt report`: runs on one page that stands alone: how they stand, verdicts in words, curves, and what happened to them."""

import json
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.report_events import events_table, marks, recipes, shade
from megatron_ngpt.monitor.run_record import AXES, RunRecord, Series, read_runs
from megatron_ngpt.monitor.table import Metric
from megatron_ngpt.monitor.verdicts import COUNT, state, verdicts
from megatron_ngpt.pages import Html, colour, dot, element, escaped, page, table
from megatron_ngpt.pages import verdicts as verdict_list

POINTS = 1500  # of a curve; of more, each part of it keeps its least and its greatest value
TOGETHER = {"valid_loss": "loss"}  # one picture
LEFT_OUT = (COUNT, "tokens", "percent_done", "seconds_left", "valid")  # that the rest of the page says, and datasets that are one
STYLE = """
.wide td:first-child, .wide td:nth-child(2) { white-space: nowrap; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; align-items: center; padding: .6rem 0;
  background: var(--paper); border-bottom: 1px solid var(--line); font-size: .9rem; } .bar label { margin-right: .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem 1.6rem; }
.chart { min-width: 0; } .chart h4 { margin: .4rem 0 0; display: flex; gap: .6rem; align-items: baseline; }
.chart h4 span { font-weight: 400; }
.chart p { margin: 0; font-size: .85rem; } .chart svg { display: block; touch-action: pan-y; cursor: crosshair; user-select: none; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; min-height: 1.5em; }
.legend [data-name] { cursor: pointer; } .legend .off { opacity: .35; } .legend b { font-variant-numeric: tabular-nums; }
.where { color: var(--faint); } .tick { fill: var(--faint); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-opacity: .7; } .axis { stroke: var(--faint); } .cross { stroke: var(--faint); stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .raw { fill: none; stroke-width: 1; opacity: .25; }
.unhealthy { fill: var(--bad); opacity: .1; } .drag { fill: var(--c0); opacity: .15; }
.event { stroke-dasharray: 4 3; opacity: .7; }
.event.veto, .event.rollback, .event.checkpoint_failed { stroke: var(--bad) !important; stroke-dasharray: none; }
button { font: inherit; font-size: .8rem; color: var(--faint); background: none; border: 1px solid var(--line); border-radius: 4px;
  cursor: pointer; } button[aria-pressed=true] { color: var(--paper); background: var(--faint); } .log { margin-left: auto; }
"""


def write_report(paths: list[Path], out: Path) -> None:
    """Write the page of the runs at `paths`. Raises ConfigError for what is no run, or a file that cannot be written."""
    content = report(read_runs(paths))
    try:
        out.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}; choose another file") from None


def report(runs: list[RunRecord]) -> str:
    """The whole page, as HTML."""
    names = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    charts = list(_charts(runs))
    parts = [
        element("h1", f"Training of {names}"),
        element("p", f"made {time.strftime('%Y-%m-%d %H:%M')} by ngpt report", class_="faint"),
        table(["run", "model", "state", "step", "tokens", "loss", "validation loss", "tokens/s", "hours", "starts"], map(_row, runs)),
        *(part for number, run in enumerate(runs) for part in _judged(run, number, len(runs))),
        element("h2", "Curves"),
        _bar(),
        *_sections(charts),
        element("noscript", element("p", "The curves are drawn by a script in this page; every number of them is in metrics.jsonl.")),
        element("h2", "What happened"),
        events_table(runs),
        element("h2", "Recipes" if len(runs) > 1 else "Recipe"),
        *recipes(runs),
    ]
    chosen = {"charts": [chart for _, chart in charts], "places": list(map(_places, runs)), "events": list(marks(runs))}
    data = json.dumps(chosen, separators=(",", ":")).replace("</", "<\\/")
    parts.append(Html(f'<script type="application/json" id="data">{data}</script>'))
    return page(f"Training of {names}", parts, STYLE, (files("megatron_ngpt.monitor") / "charts.js").read_text("utf-8"))


def _row(run: RunRecord) -> list[object]:
    """A run in the table at the head: the newest values, of loss and pace the mean of the last lines."""
    model, training = run.recipe.get("model", {}), run.training
    losses = [line["loss"] for line in training[-20:] if line["loss"] is not None]
    speeds = [line["tokens_per_second"] for line in training[-20:] if line.get("tokens_per_second")]
    valid = [line["valid_loss"] for line in run.lines if line.get("valid_loss") is not None]
    sizes = (("layers", "layers"), ("hidden", "wide"), ("context", "tokens"))
    shape = ", ".join(f"{model[key]} {word}" for key, word in sizes if key in model)
    return [
        run.name,
        f"{model.get('arch', '?')}: {shape}" if model else "no recipe.yaml",
        state(run),
        f"{run.last_step:,}" + (f" of {run.steps:,}" if run.steps else ""),
        f"{training[-1].get('tokens') or 0:,}" if training else "",
        f"{sum(losses) / len(losses):.4f}" if losses else "",
        f"{valid[-1]:.4f}" if valid else "",
        f"{sum(speeds) / len(speeds):,.0f}" if speeds else "",
        f"{run.places([run.last_step])['hours'][0]:.3g}",
        sum(event["event"] == "start" for event in run.events) or "",
    ]


def _judged(run: RunRecord, number: int, runs: int) -> list[Html]:
    heading = Html(f"{dot(colour(number))}{escaped(run.name)}") if runs > 1 else "Verdict"
    return [element("h2", heading), verdict_list(verdicts(run))]


def _bar() -> Html:
    """What the reader chooses of all curves together."""
    named = {"step": "steps", "tokens": "tokens", "hours": "hours of training"}
    checked = dict.fromkeys(AXES, "") | {"step": " checked"}
    axes = "".join(f'<label><input type="radio" name="axis" value="{axis}"{checked[axis]}> {named[axis]}</label>' for axis in AXES)
    smooth = '<label>smoothed <input type="range" id="smooth" min="0" max="0.98" step="0.02" value="0"></label>'
    told = element("span", "drag to look closer, twice to click for all again", class_="faint")
    return element("div", Html(f"<span>by {axes}</span>{smooth}{told}<button id=\"reset\" hidden>all of it</button>"), class_="bar")


def _charts(runs: list[RunRecord]) -> Iterator[tuple[str, dict]]:
    """(section, picture) of each value. One of several numbers has a picture for each run, with a line for each number."""
    found: dict[str, list[tuple[int, Series]]] = {}
    for number, run in enumerate(runs):
        for series in run.series():
            name = series.metric.name
            if name in LEFT_OUT and not (name == "valid" and len(run.recipe.get("data", {}).get("valid") or []) > 1):
                continue
            found.setdefault(TOGETHER.get(name, name), []).append((number, series))
    for held in found.values():
        metric = min((series.metric for _, series in held), key=lambda metric: metric.name in TOGETHER)
        section = (metric.tag or "").partition("/")[0]
        if not held[0][1].key:
            yield section, _chart(metric, metric.name, [_line(runs, number, series, colour(number)) for number, series in held])
            continue
        for number in sorted({number for number, _ in held}):
            own = [series for owner, series in held if owner == number]
            title = f"{metric.name} of {runs[number].name}" if len(runs) > 1 else metric.name
            lines = [_line(runs, number, series, shade(place, len(own)), series.key) for place, series in enumerate(own)]
            yield section, _chart(metric, title, lines)


def _chart(metric: Metric, title: str, lines: list[dict]) -> dict:
    return {"title": title, "unit": metric.unit, "meaning": metric.meaning, "low": metric.low, "high": metric.high, "series": lines}


def _line(runs: list[RunRecord], number: int, series: Series, shown_in: str, name: str = "") -> dict:
    dots = series.metric.name in TOGETHER
    label = name or (f"{runs[number].name}, validation" if dots else runs[number].name)
    steps, values = thinned(series.steps, series.values)
    values = [float(f"{value:.6g}") for value in values]
    return {"run": number, "name": label, "color": shown_in, "dots": dots, "steps": steps, "values": values}


def thinned(steps: list[int], values: list[float], most: int = POINTS) -> tuple[list[int], list[float]]:
    """At most so many of the points: of each part of the curve its least and its greatest value, so that no spike is lost."""
    if len(steps) <= most:
        return steps, values
    kept, parts = {0, len(steps) - 1}, most // 2 - 1
    for part in range(parts):
        places = range(part * len(steps) // parts, (part + 1) * len(steps) // parts)
        kept |= {min(places, key=values.__getitem__), max(places, key=values.__getitem__)}
    chosen = sorted(kept)
    return [steps[place] for place in chosen], [values[place] for place in chosen]


def _sections(charts: list[tuple[str, dict]]) -> Iterator[Html]:
    """The pictures under the names that TensorBoard has for them, numbered ones first."""
    for section in sorted(dict.fromkeys(section for section, _ in charts), key=lambda section: not section[:1].isdigit()):
        own = [_place_of(number, chart) for number, (of, chart) in enumerate(charts) if of == section]
        yield element("h3", section.lstrip("0123456789 ").capitalize())
        yield element("div", *own, class_="charts")


def _place_of(number: int, chart: dict) -> Html:
    """The place of a picture, and what it shows in words."""
    entries = [element("span", dot(line["color"]), line["name"], " ", Html("<b></b>"), data_name=line["name"]) for line in chart["series"]]
    unit = element("span", chart["unit"], class_="faint")
    return element(
        "div",
        element("h4", chart["title"], unit, element("button", "log", class_="log", aria_pressed="false")),
        element("p", chart["meaning"], class_="faint"),
        element("div", element("span", class_="where"), *entries, class_="legend"),
        class_="chart",
        data_chart=str(number),
    )


def _places(run: RunRecord) -> dict[str, list[float]]:
    """Steps, tokens and hours that belong together, of as many lines as a curve needs."""
    steps = sorted({0, *(line["step"] for line in run.lines)})
    every = max(1, len(steps) // POINTS)
    places = run.places([*steps[::every], *steps[-1:]])
    return {axis: [float(f"{value:.8g}") for value in values] for axis, values in places.items()}
