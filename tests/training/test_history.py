"""The verdict on an update: what is not finite, or far above a history that it does not move."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.training.history import NOTHING, STEPS, History

CPU = torch.device("cpu")


def pair(loss: float, norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(loss), torch.tensor(norm)


def taught(deviations: float, steps: int, seed: int = 0) -> History:
    """That has seen losses around 3 ± 0.1 and norms around 1 ± 0.2."""
    history, noise = History(deviations, CPU), torch.randn(steps, 2, generator=torch.Generator().manual_seed(seed))
    for loss, norm in noise:
        history.add(3 + 0.1 * loss, 1 + 0.2 * norm, torch.tensor(False))
    return history


@pytest.mark.parametrize("loss, norm, vetoed", [
    (2.0, 1.0, False), (2.0, 0.0, False), (torch.inf, 1.0, True), (torch.nan, 1.0, True), (2.0, torch.inf, True), (2.0, torch.nan, True),
])  # fmt: skip
@pytest.mark.parametrize("deviations", [0.0, 50.0])
def test_what_is_not_finite_is_vetoed_from_the_first_step_on(deviations, loss, norm, vetoed):
    assert History(deviations, CPU).judge(*pair(loss, norm)).item() is vetoed


def test_only_a_full_history_vetoes_and_only_what_lies_above_it():
    wild = pair(1e9, 1e9)
    assert not taught(5, STEPS - 1).judge(*wild)
    history = taught(5, STEPS)
    assert history.judge(*wild) and history.judge(*pair(3.0, 2.5)) and history.judge(*pair(3.8, 1.0))
    assert not history.judge(*pair(0.1, 0.01)) and not history.judge(*pair(3.3, 1.6))
    assert not taught(0, STEPS).judge(*wild)


def test_a_loss_that_stands_still_may_move_by_its_rounding():
    history = History(5, CPU)
    for _ in range(STEPS):
        history.add(*pair(2.0, 1.0), torch.tensor(False))
    assert not history.judge(*pair(2.09, 1.04)) and history.judge(*pair(2.11, 1.0))


@given(st.lists(st.floats(1e6, 1e30), max_size=STEPS // 2 - 1), st.integers(0, 99))
def test_less_than_half_of_a_history_cannot_lift_its_limits_far(outliers, seed):
    """Even if they had been applied: medians break down at a half. What is vetoed leaves no trace at all."""
    history = taught(20, STEPS, seed)
    before = history.values.clone()
    history.add(*pair(1e30, 1e30), torch.tensor(True))
    assert torch.equal(history.values, before)
    for value in outliers:
        history.add(*pair(value, value), torch.tensor(False))
    assert (history.limits() < 1e4).all() and history.judge(*pair(1e5, 1.0))


@given(st.integers(0, 2 * STEPS), st.integers(0, 99))
def test_its_state_goes_through_json_bit_for_bit(steps, seed):
    history, again = taught(20, steps, seed), taught(20, 3)
    again.load(json.loads(json.dumps(history.state())))
    assert torch.equal(again.values.view(torch.int32), history.values.view(torch.int32))
    again.load(NOTHING)
    assert again.state() == NOTHING
