"""Exact values of the learning rate at the corners of every schedule."""

from itertools import pairwise

import pytest

from megatron_ngpt.config.recipe import Optimizer, Recipe, Schedule
from megatron_ngpt.training.schedule import last_rate, learning_rate


def rates(at: list[int], steps: int = 100, lr: float = 1.0, **schedule) -> list[float]:
    """Rates at the steps `at`."""
    return [learning_rate(Schedule(**schedule), Optimizer(lr=lr), steps, step) for step in at]


def test_cosine_over_the_whole_run():
    assert rates([25, 50, 75, 100], lr=2.0) == pytest.approx([1 + 2**-0.5, 1.0, 1 - 2**-0.5, 0.0], abs=1e-12)


def test_first_step_without_warmup_is_all_but_the_peak():
    assert rates([1], steps=1000)[0] == pytest.approx(1.0, abs=3e-6)


def test_cosine_reaches_min_lr_at_decay_steps_and_stays():
    curve = rates([10, 25, 40, 41, 100], decay_steps=40, warmup_steps=10, min_lr=0.1)
    assert curve == pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1])


def test_a_run_may_stop_before_the_cosine_ends():
    assert rates([100], decay_steps=200) == pytest.approx([0.5])


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_and_reaches_the_peak(kind):
    assert rates([1, 2, 4, 8], kind=kind, warmup_steps=8, decay_steps=50, lr=0.8) == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_wsd_falls_linearly_over_the_last_steps():
    assert rates([1, 50, 80, 85, 90, 100], kind="wsd", decay_steps=20, min_lr=0.2) == pytest.approx([1, 1, 1, 0.8, 0.6, 0.2])


def test_wsd_without_decay_steps_falls_from_the_end_of_the_warmup():
    assert rates([20, 60, 100], kind="wsd", warmup_steps=20) == pytest.approx([1.0, 0.5, 0.0])
    assert rates([20, 60, 100], kind="wsd", warmup_steps=20, decay_steps=90) == pytest.approx([1.0, 0.5, 0.0])


def test_constant_stays():
    assert rates([1, 50, 100], kind="constant", lr=0.3) == [0.3, 0.3, 0.3]


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_the_rate_never_jumps(kind):
    """No step of the rate exceeds the steepest slope of its schedule, at the seams between phases neither."""
    curve = rates(list(range(1, 101)), kind=kind, warmup_steps=10, decay_steps=60, min_lr=0.05)
    assert max(abs(a - b) for a, b in pairwise(curve)) <= 0.1 + 1e-12


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_warmup_that_leaves_no_room_for_the_decay(kind):
    assert rates([5, 10], steps=10, kind=kind, warmup_steps=10, decay_steps=5) == [0.5, 1.0]


@pytest.mark.parametrize(("steps", "schedule", "said"), [
    (100, {"decay_steps": 200}, "the learning rate at the last step, 100 of a schedule of 200, will be 0.5"),
    (5, {"decay_steps": 200, "warmup_steps": 10}, "the learning rate at the last step, 5 of a schedule of 200, will be 0.5"),
    (100, {"kind": "wsd", "decay_steps": 200, "min_lr": 0.25}, "falls over the whole run after the warm-up"),
    (1, {}, "the learning rate of the only step is 0, so that it changes nothing"),
    (1, {"kind": "wsd"}, "the learning rate of the only step is 0, so that it changes nothing"),
    (100, {}, None), (100, {"decay_steps": 100}, None), (100, {"kind": "wsd", "decay_steps": 100}, None),
    (1, {"min_lr": 0.1}, None), (1, {"kind": "constant"}, None), (100, {"kind": "constant", "decay_steps": 200}, None),
])
def test_what_is_worth_knowing_about_the_rate_at_the_end(steps, schedule, said):
    data, training = {"tokenizer": "t", "train": [{"prefix": "p"}]}, {"output": "o", "steps": steps}
    recipe = Recipe.model_validate({"data": data, "training": training, "optimizer": {"lr": 1.0}, "schedule": schedule})
    found = last_rate(recipe)
    assert found is None if said is None else said in found
