"""Updates: a veto moves nothing anywhere and leaves no trace, in every layout family; a step waits for no device."""

import pytest
import torch

from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.sphere.renormalise import NormErrors, Renormaliser
from megatron_ngpt.training.history import History
from megatron_ngpt.training.update import Outcome, StepResult, Update, read
from tests.on_ranks import on_ranks
from tests.sphere.cut_weights import HeldWeights, Matrix
from tests.training.vetoes import FAMILIES, LIGHT, check_vetoes, waits

CPU = torch.device("cpu")
CLOCK = Clock(0, CPU)


@pytest.mark.parametrize("ranks", LIGHT)
def test_a_vetoed_update_never_was(ranks):
    on_ranks(ranks, check_vetoes, LIGHT[ranks], seconds=150)


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", FAMILIES)
def test_a_vetoed_update_never_was_in_any_family(ranks):
    on_ranks(ranks, check_vetoes, list(FAMILIES[ranks]), seconds=280)


def test_only_a_logged_step_waits_and_once():
    """DeepSpeed's own: BF16_Optimizer's norm, the norms of offloaded gradients, and in ZeRO-3 a number that is the host's anyway."""
    reading = {"data 2, bf16-zero1", "data 2, zero3", "data 2, zero3-offload"}
    for found in on_ranks(2, waits, LIGHT[2], seconds=100):
        assert {name: kinds["unlogged"][0] for name, kinds in found.items() if kinds["unlogged"][0]} == {}
        assert {name: kinds["logged"][0] for name, kinds in found.items() if kinds["logged"][0] != 1} == {}
        assert {name for name, kinds in found.items() if kinds["unlogged"][1]} == reading


def held(matrix: Matrix) -> tuple[HeldWeights, torch.optim.Optimizer, Renormaliser]:
    """A spherical matrix and a scale in one buffer on this rank, and what moves it."""
    weights = HeldWeights([matrix, Matrix("scale", 1, 12, spherical=False)], RankGrid())
    for buffer in weights.buffers:
        buffer.counted = True
    renormaliser = Renormaliser(weights.shards, RankGrid())
    renormaliser.renormalise()
    return weights, torch.optim.SGD(weights.buffers, lr=0.0, fused=True), renormaliser


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.7, 1000.0])
def test_an_update_is_clip_tangent_optimiser_renormalisation_in_float64(clip, tangent):
    matrix = Matrix("w", 7, 12)
    weights, base, renormaliser = held(matrix)
    scale = weights.shards["scale"].master.double()
    update = Update(base, base, torch.nn.ParameterList(weights.buffers), RankGrid(), renormaliser, clip, tangent, History(0.0, CPU), CLOCK)

    def gradients() -> None:
        weights.set_gradients(seed=1)
        base.step()

    norm = HeldWeights(weights.matrices, RankGrid(), seed=1).buffers[0].detach().double().norm().item()
    result = update.run(0.5, True, gradients, lambda: torch.tensor(2.0)).read()
    rows, gradient = matrix.values(0).double(), matrix.values(1).double()
    rows /= rows.norm(dim=1, keepdim=True)
    shrink = min(1.0, clip / norm) if clip else 1.0
    gradient = gradient * shrink
    if tangent:
        gradient = gradient - (gradient * rows).sum(1, keepdim=True) * rows
    moved = rows - 0.5 * gradient
    lengths = moved.norm(dim=1, keepdim=True)
    assert (weights.shards["w"].master.view(7, 12) - moved / lengths).abs().max() < 1e-6
    wanted = scale - 0.5 * shrink * Matrix("scale", 1, 12).values(1)[0].double()
    assert (weights.shards["scale"].master - wanted).abs().max() < 1e-6
    assert (result.loss, result.vetoed) == (2.0, False) and result.grad_norm == pytest.approx(norm, rel=1e-6)
    assert result.norm_errors.before == pytest.approx((lengths - 1).abs().max().item(), rel=1e-4)
    assert result.norm_errors.after < 1e-6


def test_an_optimiser_that_cannot_be_vetoed_is_refused():
    weights, _, renormaliser = held(Matrix("w", 7, 12))
    base = torch.optim.SGD(weights.buffers, lr=0.1)
    with pytest.raises(TypeError, match="SGD has no `found_inf`"):
        Update(base, base, torch.nn.ParameterList(weights.buffers), RankGrid(), renormaliser, 0.0, False, History(0.0, CPU), CLOCK)


def test_several_updates_are_read_at_once():
    numbers = [[2.0, 1.0, 0.0, torch.nan, torch.nan], [torch.inf, 1.0, 1.0, 0.5, 0.25]]
    first, second = read([Outcome(torch.tensor(of_step)) for of_step in numbers])
    assert first == StepResult(2.0, 1.0, False, None)
    assert second == StepResult(torch.inf, 1.0, True, NormErrors(0.5, 0.25))
