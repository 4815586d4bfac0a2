"""What the loop makes of a stop, a lost run directory and values that are not finite; the engine is a small stand-in without DeepSpeed."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_ngpt.checkpoint.ownership import claim
from megatron_ngpt.errors import NgptError
from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.monitor.events import read_events
from megatron_ngpt.monitor.metrics import read_metrics
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.training import loop, stop
from megatron_ngpt.training.history import History
from megatron_ngpt.training.preflight import preflight
from megatron_ngpt.training.update import Outcome
from tests.checkpoint.layouts import Layout, build, fill
from tests.on_ranks import on_ranks

pytestmark = pytest.mark.usefixtures("in_repository")


class StandIn:
    """Three micro-batches a step, each of which may be `struck`; only the last moves the weights, by one."""

    struck = staticmethod(lambda *_: None)
    loss, vetoed = 2.0, 0.0

    def __init__(self, *_):
        self.shards, self.base = build(Layout(), 0)
        self.number, self.grid, self.device = 0, RankGrid(), torch.device("cpu")
        self.clock, self.history = Clock(0, self.device), History(0.0, self.device)

    def initialise(self):
        fill(self.shards, self.base, 3, step=1)

    def publish(self):
        """Nothing computes with the weights."""

    def step(self, rows, lr, measure, between):
        self.number += 1
        for micro in (1, 2, 3):
            if micro > 1:
                between()
            self.struck(self, micro)
        for shard in self.shards.values():
            shard.master.add_(1)
        return Outcome(torch.tensor([float("nan") if self.vetoed else 2.0, 1.0, self.vetoed, 0.0, 0.0]))

    def check_copies(self, step):
        """One rank has none."""

    def repeat(self, rows):
        return self.step(rows, 0.0, False, lambda: None).read()

    def evaluate(self, _):
        return self.loss


def run(recipe, options, strike=None, loss=2.0):
    """(what the person read, how it ended)"""
    ready = preflight(recipe, options, 1)
    ready = replace(ready, ownership=claim(loop.Path(ready.recipe.training.output), "a"))
    StandIn.struck, StandIn.loss, loop.Engine = staticmethod(strike or (lambda *_: None)), loss, StandIn
    stop.WITHIN = 0  # the ranks ask each other between all micro-batches, as where they are long
    console, ended = io.StringIO(), "well"
    try:
        loop.Trainer(ready, torch.device("cpu"), console).train()
    except NgptError as error:
        ended = f"{error}, status {error.exit_code}"
    ready.ownership.release()
    return console.getvalue(), ended


def stopped(recipe, options, at, again):
    """Asked to stop within a step, and started again."""

    def strike(engine, micro):
        if (engine.number, micro) == at:
            trainer.stop.asked = "SIGTERM"

    def remember(self, *arguments):
        nonlocal trainer
        trainer = self
        original(self, *arguments)

    trainer, original = None, loop.Trainer.__init__
    loop.Trainer.__init__ = remember
    return [run(recipe, options, strike), run(recipe, [*options, *again])]


def begin(corpus, tmp_path, *options):
    return str(corpus / "recipe.yaml"), [f"--training.output={tmp_path}/run", "--schedule.kind=constant", *options]


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())


def happened(tmp_path):
    """(event, step) of all starts."""
    return [(event["event"], event["step"]) for event in read_events(tmp_path / "run")]


def steps(tmp_path):
    return [line["step"] for line in read_metrics(tmp_path / "run")]


@pytest.mark.parametrize("at", [(3, 1), (3, 3)])
@pytest.mark.parametrize("every", [0, 1])
def test_the_last_whole_step_is_kept(corpus, tmp_path, at, every):
    """Within step 3, before its last micro-batch or after it."""
    recipe, options = begin(corpus, tmp_path, "--training.steps=5", f"--checkpoint.every={every}")
    [[(told, ended), (again, finished)]] = on_ranks(1, stopped, recipe, options, at, [])
    whole, cut = (2, "step 3 was cut short, ") if at == (3, 1) else (3, "")
    assert ended == finished == "well"
    assert f"asked to stop: {cut}checkpoint of step {whole} written; the same command continues from it" in told
    assert f"continues from {tmp_path}/run/checkpoints/step-{whole:08d}" in again
    assert steps(tmp_path) == [1, 2, 3, 4, 5] and "step-00000005" in left(tmp_path)
    saved = [("checkpoint", step) for step in range(1, whole + 1)] if every else []
    cut_off = saved if every else [("checkpoint", whole)]
    assert sorted(happened(tmp_path)[: len(cut_off) + 3]) == sorted([("start", 0), *cut_off, ("stop", whole), ("end", whole)])
    again = [("checkpoint", step) for step in range(whole + 1, 6)] if every else [("checkpoint", 5)]
    assert happened(tmp_path)[len(cut_off) + 3 :] == [("start", whole), *again, ("end", 5)]
    events = read_events(tmp_path / "run")
    begun, goes_on = (event for event in events if event["event"] == "start")
    assert begun["resumed_from"] is None and begun["ranks"] == "1 rank on 1 host" and begun["layout"].startswith("1 rank = tensor 1")
    assert goes_on["resumed_from"].endswith(f"step-{whole:08d}") and begun["code"] == goes_on["code"] != ""
    assert f"continues from {goes_on['resumed_from']}" in goes_on["notes"]
    assert [event["outcome"] for event in events if event["event"] == "end"] == ["stopped", "finished"]
    assert [event["asked"] for event in events if event["event"] == "stop"] == ["SIGTERM"]


def test_nothing_is_promised_before_a_step_is_whole(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=2")
    [[(told, ended), _]] = on_ranks(1, stopped, recipe, options, (1, 1), [])
    assert ended == "well" and "asked to stop: step 1 was cut short, no step was complete, and there is nothing to save" in told


def test_under_never_the_stop_says_what_to_type(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=5", "--checkpoint.resume=never")
    [[(told, _), (again, ended)]] = on_ranks(1, stopped, recipe, options, (3, 1), ["--checkpoint.resume=auto"])
    assert "checkpoint of step 2 written; with --checkpoint.resume=auto it continues from it" in told
    assert "continues from" in again and ended == "well" and steps(tmp_path) == [1, 2, 3, 4, 5]


def elsewhere(recipe, first, second, third):
    return [run(recipe, options) for options in (first, second, third)]


def test_a_run_that_began_elsewhere_goes_on_from_its_own(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--checkpoint.every=1")
    began = tmp_path / "run" / "checkpoints" / "step-00000001"
    moved = [*options[1:], f"--training.output={tmp_path}/second", f"--checkpoint.resume={began}"]
    turns = [[*options, "--training.steps=2"], [*moved, "--training.steps=3"], [*moved, "--training.steps=4"]]
    [[_, (told, _), (again, ended)]] = on_ranks(1, elsewhere, recipe, *turns)
    assert f"continues from {began}" in told and "says how" not in told
    assert f"checkpoint.resume = {began} says how {tmp_path}/second begins, which has checkpoints of its own by now" in again
    assert f"continues from {tmp_path}/second/checkpoints/step-00000003" in again and ended == "well"
    assert [line["step"] for line in read_metrics(tmp_path / "second")] == [2, 3, 4]


def spoils(recipe, options, value):
    def strike(engine, micro):
        if (engine.number, micro) == (3, 3):
            next(iter(engine.shards.values())).master.view(-1)[0] = value

    return run(recipe, options, strike)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_last_update_that_is_not_finite_is_no_success(corpus, tmp_path, value):
    recipe, options = begin(corpus, tmp_path, "--training.steps=3", "--checkpoint.every=1")
    [(_, ended)] = on_ranks(1, spoils, recipe, options, value)
    assert "step-00000003 was not written: weights/" in ended and ended.endswith("status 1")
    assert left(tmp_path) == ["latest", "step-00000001", "step-00000002", "step-00000003.notfinite"]
    assert happened(tmp_path)[-1] == ("end", 3) and read_events(tmp_path / "run")[-1]["error"] in ended


def refuses(recipe, options):
    def strike(engine, micro):
        engine.vetoed = float(engine.number == 3)

    return run(recipe, options, strike)


def test_a_vetoed_update_is_an_event_and_the_run_goes_on(corpus, tmp_path):
    """But not where one is a row, and there is nothing to go back to."""
    recipe, options = begin(corpus, tmp_path, "--training.steps=5", "--checkpoint.every=0")
    [(told, ended)] = on_ranks(1, refuses, recipe, options)
    assert ended == "well" and "step 3: loss is nan: vetoed, no weight was moved; computed again from the same rows it does not" in told
    assert happened(tmp_path) == [("start", 0), ("veto", 3), ("checkpoint", 5), ("end", 5)] and steps(tmp_path) == [1, 2, 3, 4, 5]
    recipe, options = begin(corpus, tmp_path / "row", "--training.steps=5", "--training.skip.in_a_row=1", "--training.log_every=4")
    [(_, ended)] = on_ranks(1, refuses, recipe, options)
    assert ended.startswith("steps 3 to 3 were vetoed: loss is nan; there is no checkpoint to roll back to") and ended.endswith("status 1")
    assert happened(tmp_path / "row") == [("start", 0), ("veto", 3), ("end", 4)]


def evaluates(recipe, options, loss):
    return run(recipe, options, loss=loss)


def test_a_last_evaluation_that_is_not_finite_is_no_success(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=3", "--training.eval_every=2", f"--data.valid=[{{prefix: {corpus}/b}}]")
    [(_, ended)] = on_ranks(1, evaluates, recipe, options, float("nan"))
    assert ended.startswith("step 3: the validation loss is nan; the checkpoint of this step is written") and ended.endswith("status 1")
    assert left(tmp_path) == ["latest", "step-00000003"]


def loses(recipe, options):
    def strike(engine, micro):
        if (engine.number, micro) == (3, 1):
            told = {"host": "other", "process": 7, "started": "today", "token": "x"}
            (loop.Path(options[0].partition("=")[2]) / "owner-00000009.json").write_text(json.dumps(told))

    from megatron_ngpt.checkpoint import ownership

    ownership.BEAT = 0
    return run(recipe, options, strike)


def test_who_lost_the_directory_stops_before_it_writes(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=5", "--checkpoint.every=3")
    [(_, ended)] = on_ranks(1, loses, recipe, options)
    whom = "is used by process 7 on other, started today now: this run was taken for dead, and stops without writing there"
    assert ended == f"{tmp_path}/run {whom}, status 1"
    assert steps(tmp_path) == [1, 2] and not (tmp_path / "run" / "checkpoints").exists()
    assert happened(tmp_path) == [("start", 0)], "the events are the other run's now"


def torn(recipe, options):
    def strike(engine, micro):
        if engine.number == 2:
            trainer.stop.asked = "SIGTERM"
            raise RuntimeError("Connection closed by peer")

    def remember(self, *arguments):
        nonlocal trainer
        trainer = self
        original(self, *arguments)

    trainer, original = SimpleNamespace(), loop.Trainer.__init__
    loop.Trainer.__init__ = remember
    return run(recipe, options, strike)


def test_ranks_that_are_torn_apart_after_a_stop_leave_one_line(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=5")
    [(_, ended)] = on_ranks(1, torn, recipe, options)
    assert ended == "SIGTERM: ended before the checkpoint of step 2 was complete; there is no checkpoint yet, status 1"
