"""The training line: what it makes of steps that were not logged, and of sources."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import torch

from megatron_ngpt.config.costs.work import flops_per_token
from megatron_ngpt.config.recipe import Data, Dataset, Monitor, Optimizer, Recipe, Training
from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.monitor.events import EventLog
from megatron_ngpt.monitor.table import METRICS
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.sphere.renormalise import NormErrors
from megatron_ngpt.training import line as module
from megatron_ngpt.training.line import TrainingLine
from megatron_ngpt.training.phase import Phase
from megatron_ngpt.training.update import StepResult

PEAK, CPU = 1e9, torch.device("cpu")


class Batches:
    """Two sources; the batch has rows of the second alone."""

    def epochs(self, step):
        return [step / 10, step / 100]

    def rows_by_source(self, _):
        return [0, 4]

    def rows(self, *chosen):
        return chosen


def result(norm: float, **more) -> StepResult:
    return StepResult(2.0, norm, False, NormErrors(0.25, 1e-7), (0.0, 0.0, 1.5, 8.0), **more)


def line(monkeypatch, clip=1.0, **training) -> tuple[TrainingLine, Recipe]:
    monkeypatch.setattr(module, "peak_flops", lambda *_: PEAK)
    recipe = Recipe(
        data=Data(tokenizer="none", train=[Dataset(prefix="a/text"), Dataset(prefix="b/text", name="books")]),
        optimizer=Optimizer(clip=clip), monitor=Monitor(every=4),
        training=Training(**{"output": "none", "steps": 20, "global_batch": 4} | training),
    )  # fmt: skip
    ready = SimpleNamespace(recipe=recipe, vocabulary=100, deepspeed=SimpleNamespace(bf16=False))
    told = {name: Mock() for name in ("observer", "observe", "check_copies")}
    engine = SimpleNamespace(grid=RankGrid(), device=CPU, clock=Clock(0, CPU), probe_rows=4, **told)
    return TrainingLine(ready, engine, Batches(), [Phase(0, 512, 4, skipped=((3, 4),)), Phase(0, 1024, 4)], Mock(), vetoed=2), recipe


def test_the_values_of_a_line(monkeypatch):
    made, recipe = line(monkeypatch)
    made.saw([result(0.5), result(1.5), result(0.9), result(1.0)])
    values = made.values(4, result(1.0, source_losses=(0.0, 10.0)), 1e-3)
    assert set(values) <= set(METRICS)
    wanted = {"tokens": 4 * 4 * 1024, "percent_done": 20.0, "loss": 2.0, "loss_by_source": {"books": 2.5}, "clipped": 0.25,
              "epochs": {"text": 0.4, "books": 0.04}, "host_memory": 1.5, "host_memory_available": 8.0, "device_memory_peak": None,
              "norm_error_before": 0.25, "max_norm_error": 1e-7}  # fmt: skip
    assert {name: values[name] for name in wanted} == wanted
    speed = values["tokens_per_second"]
    assert abs(values["utilisation"] - flops_per_token(recipe.model, 100) * speed / PEAK) < 1e-9


def test_starts_and_vetoes_are_counted_over_all_of_a_run(monkeypatch, tmp_path):
    """Two vetoed before, two that are skipped, and one since; it clips nothing."""
    log = EventLog(tmp_path)
    for event in ("start", "veto", "end", "start", "checkpoint", "start"):
        log.append(event, 1)
    made, _ = line(monkeypatch, output=str(tmp_path))
    made.saw([result(0.5), replace(result(9.0), vetoed=True)])
    values = made.values(4, result(1.0), 1e-3)
    assert (values["restarts"], values["vetoed_steps"], values["clipped"]) == (2, 5, 0.0)


def test_clipping_is_counted_anew_after_each_line_and_not_where_it_is_off(monkeypatch):
    made, _ = line(monkeypatch)
    for step, norms, share in ((2, [2.0, 2.0], 1.0), (4, [0.5, 2.0], 0.5)):
        made.saw([result(norm) for norm in norms])
        assert made.values(step, result(1.0), 1e-3)["clipped"] == share
    off, _ = line(monkeypatch, clip=0.0)
    off.saw([result(2.0)])
    assert off.values(1, result(1.0), 1e-3)["clipped"] is None


def test_which_steps_are_told_and_which_are_watched(monkeypatch):
    """Every third and the last one; and, watched, every fourth: those are logged too, so that no other step waits for the device."""
    made, _ = line(monkeypatch, log_every=3)
    told, watched, histograms = [], [], []
    for step in range(1, 21):
        if made.due(step):
            made.saw([result(1.0)])
            made.tell(step, result(1.0), 1e-3)
            told.append(step)
        for mock, steps in ((made._engine.observe, watched), (made._monitor.histograms, histograms)):
            steps.extend([step] * mock.call_count)
            mock.reset_mock()
    assert told == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20] and watched == [4, 8, 12, 16, 20] and histograms == [4]
    assert made._engine.observer.begin.call_count == 5
