"""`ngpt report`: verdicts, what is drawn, and a page that stands alone."""

import json
import re
import sys

import pytest

from megatron_ngpt import cli
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.events import EventLog
from megatron_ngpt.monitor.metrics import MetricsLog, metrics_file
from megatron_ngpt.monitor.report import report, thinned
from megatron_ngpt.monitor.run_record import read_runs
from megatron_ngpt.monitor.verdicts import state, verdicts

RECIPE = "model: {arch: ngpt, layers: 2, hidden: 32, context: 8}\ntraining: {steps: 40}\ndata: {valid: [{prefix: a}, {prefix: b}]}\n"


def line(step, **changes):
    values = {"tokens": step * 100, "loss": 5 - step / 20, "grad_norm": 1.0, "lr": 1e-3, "step_seconds": 2.0, "tokens_per_second": 50.0}
    return {"step": step, **values, "tflops_per_second": 0.1, "max_norm_error": 2e-7, **changes}


def make_run(directory, lines, events=(), recipe=RECIPE):
    """A run directory of these lines and events (kind, step, details)."""
    directory.mkdir(parents=True)
    log = MetricsLog(metrics_file(directory))
    for one in lines:
        log.append(one)
    log.close()
    if events:
        log = EventLog(directory)
        for kind, step, details in events:
            log.append(kind, step, **details)
        log.close()
    if recipe:
        (directory / "recipe.yaml").write_text(recipe)
    return directory


def start(step=0, **details):
    known = {"resumed_from": f"run/step-{step}" if step else None, "code": "0.1.0", "ranks": "1 rank", "layout": "1 rank = tensor 1"}
    return "start", step, known | {"notes": []} | details


END = ("end", 40, {"outcome": "finished"})
WELL = [line(step) for step in range(1, 41)] + [{"step": 40, "valid_loss": 3.5, "valid": {"a": 3.0, "b": 4.0}}]


def judged(tmp_path, lines, events):
    (run,) = read_runs([make_run(tmp_path / "run", lines, events)])
    return verdicts(run)


def test_a_run_that_is_well(tmp_path):
    found = judged(tmp_path, WELL, [start(), END])
    assert {kind for kind, _ in found} == {"good"}
    said = " | ".join(sentence for _, sentence in found)
    assert "trained to step 40 of 40" in said and "what has a healthy range (1 value) kept within it at all 41 lines" in said
    assert "the loss went from 4.8750 over the first tenth of the run to 3.0750 over the last" in said
    assert "the pace holds: 50 tokens/s" in said


def spoilt(steps, **changes):
    return [one | changes if one["step"] in steps and "loss" in one else one for one in WELL]


@pytest.mark.parametrize(("lines", "events", "kind", "said"), [
    (spoilt([12, 13], max_norm_error=4e-3), [start(), END], "warn",
     r"max_norm_error was 0\.004 at step 12 \(healthy: 0 to 1e-06\); outside at 2 of 40 lines, back within since step 14$"),
    (spoilt([39, 40], max_norm_error=4e-3), [start(), END], "bad", r".*; outside at 2 of 40 lines, still outside$"),
    ([line(step, loss=4 + (-1) ** step * (0.3 if step < 38 else 0.6)) for step in range(1, 41)], [start(), END], "good",
     "the loss went from"),
    (spoilt([7], loss=None), [start(), END], "bad", "the loss is not finite at 1 step, first at step 7"),
    ([*WELL[:30], *(line(step, loss=5.5) for step in range(31, 41))], [start(), END], "warn",
     r"the loss rises: 5\.5000 over the last tenth of the run, 3\.\d+ over its 7th tenth"),
    ([*WELL, {"step": 30, "valid_loss": 3.3}, {"step": 40, "valid_loss": 3.5}], [start(), END], "warn",
     r"the validation loss rises since step 30: 3\.3000 there, 3\.5000 at step 40"),
    (spoilt(range(33, 41), tokens_per_second=40.0), [start(), END], "warn",
     "slower than it was: 40 tokens/s over the last tenth of the run, 50"),
    (WELL, [start(), ("veto", 37, {"why": "loss is inf"}), ("veto", 38, {"why": "loss is nan"}), END], "warn",
     "2 updates vetoed, the last of step 38: loss is nan"),
    (WELL, [start(), ("rollback", 30, {"vetoed": [36, 38]}), END], "warn",
     "rolled back 1 time from steps vetoed in a row, the last time to step 30"),
    (WELL, [start(), ("end", 40, {"outcome": "failed", "error": "step 41: loss is nan"})], "bad",
     "failed after step 40 of 40: step 41: loss is"),
    (WELL, [start(), ("checkpoint_failed", 20, {"error": "disk full"}), END], "warn",
     "1 checkpoint could not be written, the last of step 20: disk full"),
    (WELL[:20], [start()], "warn", r"at step 20 of 40, last heard of at 20\S+ \d\d:\S+: it is still running, or was killed"),
    (WELL[:20], [start(), ("end", 20, {"outcome": "stopped"})], "warn", "stopped as asked at step 20 of 40"),
    (WELL, [start(), start(8), start(20), END], "warn", "started 2 times again after an end that nobody told"),
    (WELL, [start(), ("checkpoint", 30, {"path": "x", "seconds": 3.0, "stall_seconds": 2.0}),
            ("checkpoint", 40, {"path": "x", "seconds": 9.0, "stall_seconds": 9.0}), END], "warn",
     r"training waited 2\.0 s for 1 checkpoint, 2\.5% of its time"),
    ([], [start()], "bad", "no step is told"),
])
def test_what_is_not_well_is_told(tmp_path, lines, events, kind, said):
    found = judged(tmp_path, lines, events)
    assert any(re.match(said, sentence) and found_kind == kind for found_kind, sentence in found), found
    order = [("bad", "warn", "good").index(found_kind) for found_kind, _ in found]
    assert order == sorted(order)


def test_places_on_every_axis(tmp_path):
    """Lines every 2 steps, a resumed part with longer steps; a validation between two lines; a torn last line."""
    lines = [line(2), line(4), {"step": 5, "valid_loss": 3.0}, line(6, step_seconds=20.0)]
    directory = make_run(tmp_path / "run", lines, recipe=None)
    with metrics_file(directory).open("a") as file:
        file.write('{"step": 8, "loss": 1')
    (run,) = read_runs([directory])
    places = run.places([0, 1, 5, 6, 9])
    assert places["tokens"] == [0, 100, 500, 600, 600]
    assert places["hours"] == pytest.approx([0, 2 / 3600, 28 / 3600, 48 / 3600, 48 / 3600])
    assert (run.last_step, run.steps, state(run)) == (6, None, "unknown")


def test_no_spike_is_lost_where_points_are_many():
    steps, values = list(range(10_000)), [1.0] * 10_000
    values[4321], values[77] = 50.0, -3.0
    few, kept = thinned(steps, values, 100)
    assert len(few) <= 100 and (few[0], few[-1]) == (0, 9999) and few == sorted(few)
    assert dict(zip(few, kept, strict=True))[4321] == 50.0 and min(kept) == -3.0
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])


def drawn(page):
    """What the page's script is given."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_page(tmp_path):
    """Two runs: one line each where a value is one number, a picture each where it is several; events; keys that differ."""
    wide = RECIPE.replace("hidden: 32", "hidden: 64")
    events = [start(), ("stop", 9, {"asked": "SIGTERM"}), ("end", 9, {"outcome": "stopped"})]
    events += [start(9, notes=["continues from run/step-9", "optimizer.lr: 1 → </script>"])]
    events += [("checkpoint", step, {"path": f"p{step}", "seconds": 1.0, "stall_seconds": 0.1}) for step in (10, 20, 30, 40)]
    first = make_run(tmp_path / "one" / "run", WELL, [*events, END])
    second = make_run(tmp_path / "two" / "run", [line(step, max_norm_error=None) for step in range(1, 41)], [start(5), END], wide)
    page = report(read_runs([first, second]))
    found = drawn(page)
    charts = {chart["title"]: chart for chart in found["charts"]}
    assert [series["name"] for series in charts["loss"]["series"]] == ["one/run", "one/run, validation", "two/run"]
    assert charts["loss"]["series"][0]["values"] == [one["loss"] for one in WELL[:40]] and charts["loss"]["unit"] == "nats a token"
    assert charts["loss"]["series"][1] | {"color": ""} == \
        {"run": 0, "name": "one/run, validation", "color": "", "dots": True, "steps": [40], "values": [3.5]}
    assert [series["name"] for series in charts["max_norm_error"]["series"]] == ["one/run"] and charts["max_norm_error"]["high"] == 1e-6
    assert [series["name"] for series in charts["valid of one/run"]["series"]] == ["a", "b"] and "tokens" not in charts
    assert [(mark["run"], mark["step"], mark["kind"]) for mark in found["events"]] == [(0, 9, "stop"), (0, 9, "start"), (1, 5, "start")]
    assert found["places"][1]["tokens"][-1] == 4000
    assert "goes on from run/step-9" in page and "optimizer.lr: 1 → &lt;/script&gt;" in page and "asked to stop (SIGTERM)" in page
    assert "4 checkpoints, the last p40: 4.0 s, training waited 0.40 s for them" in page and page.count("<script") == 2
    assert '<td>model.hidden</td><td class="number">32</td><td class="number">64</td>' in page and "model.layers</td>" not in page
    assert not re.search(r"(src|href|url)\W{1,3}(https?:)?//", page), "nothing is fetched"


def test_runs_of_before_and_values_that_nobody_knows(tmp_path):
    """No recipe, no events, a value that is not in the table, a line that is no object."""
    directory = make_run(tmp_path / "old", [line(1, something_new=3.0), line(2)], recipe=None)
    with metrics_file(directory).open("a") as file:
        file.write('[1]\n{"step": "x"}\n')
    page = report(read_runs([directory]))
    assert "No events.jsonl in these runs." in page and "no recipe.yaml" in page and "something_new" not in page


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `ngpt report`; returns (status, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["ngpt", "report", *map(str, argv)])
        return cli.main(), *capsys.readouterr()

    return run


def test_command(command, tmp_path):
    run, out = make_run(tmp_path / "run", WELL, [start(), END]), tmp_path / "page.html"
    assert command(run, "--out", out) == (0, f"{out}\n", "")
    assert out.read_text("utf-8").startswith("<!DOCTYPE html>") and drawn(out.read_text("utf-8"))["charts"]


@pytest.mark.parametrize(("make", "argv", "said"), [
    (None, ["gone", "--out", "x.html"], "RUN gone: has no metrics.jsonl; give the directory of a run, its training.output"),
    (WELL, ["run", "run", "--out", "x.html"], "RUN run: is there twice; once is enough"),
    (WELL, ["run", "--out", "."], "--out .: is a directory; give a file to write, such as report.html"),
    (WELL, ["run", "--out", "no/x.html"], "--out no/x.html: no directory no; give a file to write"),
    (WELL, ["run"], "ngpt report: Missing option '--out'"),
])
def test_mistakes_are_one_line(command, tmp_path, monkeypatch, make, argv, said):
    monkeypatch.chdir(tmp_path)
    if make:
        make_run(tmp_path / "run", make)
    status, out, err = command(*argv)
    assert (status, out, len(err.splitlines())) == (2, "", 1) and err.startswith(said), err


def test_a_recipe_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"RUN .*run: cannot be read .*; mend it, or leave it out"):
        read_runs([make_run(tmp_path / "run", WELL, recipe="model: {")])
