"""What a run directory tells of a run, read back: recipe, metrics and events, with every line's place in steps, tokens and hours."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.events import read_events
from megatron_ngpt.monitor.metrics import metrics_file, read_lines
from megatron_ngpt.monitor.table import METRICS, Metric, flat

AXES = ("step", "tokens", "hours")


@dataclass(frozen=True)
class Series:
    """The numbers of one value of one run.

    Attributes:
        metric: what the value is.
        key: of a value that is several numbers, which; else empty.
        steps, values: in order.
    """

    metric: Metric
    key: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        name: by which it is told from the others of a report.
        path: its directory.
        recipe: as it was resolved for the newest start; empty where there is none.
        lines: of metrics.jsonl.
        events: of events.jsonl; none in runs of before there was one.
        heard: when metrics.jsonl was written to last, seconds since 1970.
    """

    name: str
    path: Path
    recipe: dict
    lines: list[dict]
    events: list[dict]
    heard: float

    @property
    def training(self) -> list[dict]:
        """The lines of training steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def steps(self) -> int | None:
        """That the recipe asks for."""
        return self.recipe.get("training", {}).get("steps")

    @property
    def last_step(self) -> int:
        """Of the newest line."""
        return max((line["step"] for line in self.lines), default=0)

    def series(self) -> Iterator[Series]:
        """Every value of the table of metrics that the run has told, those of several numbers one by one."""
        found: dict[tuple[str, str], Series] = {}
        for line in self.lines:
            for name, value in line.items():
                if name not in METRICS:
                    continue
                for key, number in flat({name: value}).items():
                    own = key[len(name) + 1 :]
                    series = found.setdefault((name, own), Series(METRICS[name], own))
                    series.steps.append(line["step"])
                    series.values.append(number)
        order = {name: place for place, name in enumerate(METRICS)}
        yield from sorted(found.values(), key=lambda series: order[series.metric.name])  # as the table has them, keys as they came

    def places(self, steps: list[int]) -> dict[str, list[float]]:
        """Where steps lie on each of `AXES`, between two lines in proportion. Hours are of training alone: the sum of `step_seconds`,
        without evaluations, checkpoints and restarts."""
        known, tokens, hours = [0], [0.0], [0.0]
        for line in self.training:
            seconds = line.get("step_seconds") or 0.0
            hours.append(hours[-1] + seconds * (line["step"] - known[-1]) / 3600)
            tokens.append(line.get("tokens") or tokens[-1])
            known.append(line["step"])
        return {"step": steps, "tokens": [_between(known, tokens, step) for step in steps],
                "hours": [_between(known, hours, step) for step in steps]}  # fmt: skip


def _between(steps: list[int], values: list[float], step: int) -> float:
    """The value at a step, on the line through the known ones around it; outside of them the nearest one's."""
    after = bisect_left(steps, step)
    if after == len(steps):
        return values[-1]
    if steps[after] == step or after == 0:
        return values[after]
    share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def read_runs(paths: list[Path]) -> list[RunRecord]:
    """The runs, each with a name of its own: as much of its path's end as tells it from the others.

    Raises ConfigError, a line each, for what is no run directory or is there twice.
    """
    problems = []
    for number, path in enumerate(paths):
        if not metrics_file(path).is_file():
            problems.append(f"RUN {path}: has no metrics.jsonl; give the directory of a run, its training.output")
        elif path.resolve() in {other.resolve() for other in paths[:number]}:
            problems.append(f"RUN {path}: is there twice; once is enough")
    if problems:
        raise ConfigError(*problems)
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _read(path: Path, name: str) -> RunRecord:
    try:
        lines, events = read_lines(metrics_file(path)), read_events(path)
        text = (path / "recipe.yaml").read_text("utf-8") if (path / "recipe.yaml").is_file() else ""
        recipe = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).partition("\n")[0]
        raise ConfigError(f"RUN {path}: cannot be read ({first}); mend it, or leave it out") from None
    lines = [line for line in lines if isinstance(line.get("step"), int)]
    return RunRecord(name, path, recipe if isinstance(recipe, dict) else {}, lines, events, metrics_file(path).stat().st_mtime)


def _names(paths: list[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
