"""The monitor's files and what it shows, as a training loop drives it."""

import io
import math
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_ngpt.monitor import progress
from megatron_ngpt.monitor.metrics import read_metrics
from megatron_ngpt.monitor.monitor import Monitor
from tests.monitor.recipes import recipe

VALUES = {
    "loss": 2.5,
    "grad_norm": 0.75,
    "lr": 0.001,
    "step_seconds": 0.5,
    "tokens_per_second": 1234.0,
    "tflops_per_second": 0.25,
    "max_norm_error": 1e-7,
}
TAGS = {
    "1 health/loss": "loss",
    "1 health/norm_of_gradients": "grad_norm",
    "training/lr": "lr",
    "2 pace/tokens_per_second": "tokens_per_second",
    "2 pace/tflops_per_second": "tflops_per_second",
    "sphere/max_norm_error": "max_norm_error",
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def drive(folder, steps, start=0, rank=0, console=None, **changed) -> str:
    """A monitor fed with every step after `start`; what the console shows."""
    console = console or io.StringIO()
    monitor = Monitor(recipe(folder), start, rank, console)
    for step in steps:
        monitor.scalars(step, {"tokens": 100 * step, **VALUES} | changed)
    monitor.close()
    return console.getvalue()


def scalars(folder, tag, run="training") -> list[tuple[int, float]]:
    """What TensorBoard reads of `tag`."""
    events = EventAccumulator(str(folder / run))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_checkpoints_go_to_tensorboard(tmp_path):
    monitor = Monitor(recipe(tmp_path), 0, 0, io.StringIO())
    monitor.checkpoint(tmp_path / "step-00000004", 4, 2.5, 0.125)
    monitor.close()
    assert scalars(tmp_path, "checkpoint/seconds") == [(4, 2.5)]
    assert scalars(tmp_path, "checkpoint/stall_seconds") == [(4, 0.125)]


def test_every_value_in_both_files(tmp_path):
    drive(tmp_path, [1, 2])
    assert read_metrics(tmp_path) == [{"step": step, "tokens": 100 * step, **VALUES, "out_of_range": 0} for step in (1, 2)]
    for tag, name in TAGS.items():
        assert scalars(tmp_path, tag) == [(1, pytest.approx(VALUES[name])), (2, pytest.approx(VALUES[name]))]


def test_validation_line_and_tags(tmp_path):
    console = io.StringIO()
    monitor = Monitor(recipe(tmp_path), 0, 0, console)
    monitor.scalars(5, {"valid_loss": 2.0, "valid": {"web": 1.5, "code": 2.5}})
    monitor.close()
    assert read_metrics(tmp_path) == [{"step": 5, "valid_loss": 2.0, "valid": {"web": 1.5, "code": 2.5}}]
    assert scalars(tmp_path, "1 health/loss", "validation") == [(5, 2.0)]
    assert scalars(tmp_path, "validation/code", "validation") == [(5, 2.5)]
    assert scalars(tmp_path, "validation/loss") == [(5, 2.0)]  # where the tab HParams finds it
    assert "validation loss 2.0000" in console.getvalue()


def test_a_model_without_spherical_weights(tmp_path):
    drive(tmp_path, [1], max_norm_error=None)
    assert read_metrics(tmp_path)[0]["max_norm_error"] is None
    with pytest.raises(KeyError):
        scalars(tmp_path, "sphere/max_norm_error")


def test_values_out_of_their_range_are_counted_and_named_when_they_change(tmp_path):
    monitor = Monitor(recipe(tmp_path), 0, 0, io.StringIO())
    for step, error in enumerate((1e-7, 2e-3, 3e-3, math.nan, 1e-7), 1):
        monitor.scalars(step, VALUES | {"max_norm_error": error})
    monitor.close()
    assert scalars(tmp_path, "1 health/out_of_range") == [(1, 0.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 0.0)]
    events = EventAccumulator(str(tmp_path / "training")).Reload().Tensors("out_of_range")
    texts = [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]
    assert [step for step, _ in texts] == [2, 5] and "max_norm_error = 0.002: healthy is 0 to 1e-06" in texts[0][1]


def test_a_resumed_run_continues_both_files(tmp_path):
    drive(tmp_path, range(1, 8), loss=3.0)
    drive(tmp_path, range(5, 11), start=4, loss=2.0)
    expected = [(step, 3.0 if step <= 4 else 2.0) for step in range(1, 11)]
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == expected
    assert scalars(tmp_path, "1 health/loss") == expected


def test_other_ranks_write_and_show_nothing(tmp_path):
    assert drive(tmp_path, [1, 2], rank=1) == ""
    assert list(tmp_path.iterdir()) == []


def test_plain_lines_off_a_terminal_are_few_and_end_with_the_last_step(tmp_path):
    shown = drive(tmp_path, range(1, 11)).splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("step 1/10 · loss 2.5000 · 1,234 tokens/s · 0.25 TFLOP/s")
    assert shown[1].startswith("step 10/10") and "\x1b" not in "".join(shown)


def test_time_left_is_the_mean_of_the_steps_since_the_first(monkeypatch):
    clock = iter([100.0, 400.0, 500.0, 700.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = progress.Pace(10)
    assert [pace.seconds_left(step) for step in (1, 3, 5, 10)] == [None, 150.0 * 7, 100.0 * 5, 0.0]


def test_time_left_is_shown(tmp_path):
    assert drive(tmp_path, [1], seconds_left=3725.4).splitlines()[0].endswith(" · 1:02:05 left")
    assert drive(tmp_path, [1], seconds_left=None).splitlines()[0].endswith(" · time left unknown")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drive(tmp_path, range(1, 11), console=Terminal()))
    assert "step 10/10" in shown and "━" in shown and "loss 2.5000" in shown
