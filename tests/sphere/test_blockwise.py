"""AdamW in blocks: the numbers of torch's AdamW in float64, rows on the sphere after each step, each block of them handed on once."""

import pytest
import torch
import torch.nn.functional as F

from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.sphere import blockwise
from megatron_ngpt.sphere.blockwise import BlockwiseAdamW
from megatron_ngpt.sphere.renormalise import Renormaliser
from megatron_ngpt.sphere.rows import Rows, SphereRows
from tests.sphere.cut_weights import HeldWeights, Matrix

OPTIONS = {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-4}
MATRICES = [
    Matrix("w", 7, 12, group=0), Matrix("scale", 1, 12, spherical=False, group=0), Matrix("v", 5, 40, group=0),
    Matrix("x", 3, 12, group=1), Matrix("bias", 1, 5, spherical=False, group=2),
]  # fmt: skip


@pytest.fixture(params=["small blocks", "one block a matrix"])
def sizes(request, monkeypatch):
    if request.param == "small blocks":
        monkeypatch.setattr(blockwise, "_BLOCK_BYTES", 3 * 4 * 12)  # three or four rows of 12, one of 40


def moving(weights: HeldWeights) -> tuple[BlockwiseAdamW, list[torch.Tensor]]:
    """An optimiser over the buffers, each a group with its own decay, that rescales what it moves; and the blocks it has handed on."""
    groups = [{"params": [buffer], "weight_decay": 0.1 * number} for number, buffer in enumerate(weights.buffers)]
    optimizer, handed = BlockwiseAdamW(groups, **OPTIONS), []
    renormaliser = Renormaliser(dict(reversed(weights.shards.items())), RankGrid())  # not in the order of the buffers

    def moved(rows: torch.Tensor) -> None:
        handed.append(rows.clone())
        renormaliser.rescale(rows, keep=getattr(optimizer, "found_inf", torch.zeros(())).bool())

    assert optimizer.hand_on(renormaliser.rows, moved)
    return optimizer, handed


def in_float64(weights: HeldWeights, steps: int) -> list[torch.Tensor]:
    """What the buffers are after so many steps and divisions of rows, as `moving` makes them."""
    buffers = [buffer.detach().double().requires_grad_() for buffer in weights.buffers]
    optimizer = torch.optim.AdamW(
        [{"params": [buffer], "weight_decay": 0.1 * number} for number, buffer in enumerate(buffers)], **OPTIONS, fused=False, foreach=False
    )
    for number in range(steps):
        weights.set_gradients(seed=1 + number)
        for buffer, held in zip(buffers, weights.buffers, strict=True):
            buffer.grad = held.grad.double()
        optimizer.step()
        for shard in weights.shards.values():
            if shard.spherical:
                run = buffers[shard.group].detach()[shard.offset : shard.offset + shard.count].view(shard.placement.local)
                run.copy_(F.normalize(run, dim=1))
    return [buffer.detach() for buffer in buffers]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_steps_and_divisions_are_those_of_float64(sizes, one_at_a_time):
    weights = HeldWeights(MATRICES, RankGrid())
    expected = in_float64(weights, 3)
    optimizer, handed = moving(weights)
    for number in range(3):
        weights.set_gradients(seed=1 + number)
        for groups in [[group] for group in optimizer.param_groups] if one_at_a_time else [optimizer.param_groups]:  # ZeRO's way, and not
            every, optimizer.param_groups = optimizer.param_groups, groups
            optimizer.step()
            optimizer.param_groups = every
    for buffer, wanted in zip(weights.buffers, expected, strict=True):
        torch.testing.assert_close(buffer.detach().double(), wanted, rtol=0, atol=2e-6)
    assert sum(rows.shape[0] for rows in handed) == 3 * (7 + 5 + 3)
    assert {rows.shape[0] for rows in handed} == ({1, 3, 4} if len(handed) > 9 else {7, 5, 3})
    assert all(optimizer.state[buffer]["step"] == 3 for buffer in weights.buffers)


def test_a_veto_moves_and_counts_nothing(sizes):
    weights = HeldWeights(MATRICES, RankGrid())
    optimizer, _ = moving(weights)
    weights.set_gradients(seed=1)
    optimizer.step()
    weights.set_gradients(seed=2)
    weights.buffers[0].grad[3] = torch.nan
    held = [tensor for buffer in weights.buffers for tensor in (buffer, *optimizer.state[buffer].values())]
    before, optimizer.found_inf = [tensor.detach().clone() for tensor in held], torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(tensor, was) for tensor, was in zip(held, before, strict=True))


def test_a_buffer_without_a_gradient_stays():
    weights = HeldWeights(MATRICES, RankGrid())
    optimizer, handed = moving(weights)
    weights.set_gradients(seed=1)
    weights.buffers[0].grad, before = None, weights.buffers[0].detach().clone()
    optimizer.step()
    assert torch.equal(weights.buffers[0], before) and [rows.shape for rows in handed] == [(3, 12)]


def test_rows_on_another_device_than_a_cpu_are_not_handed_on():
    rows = Rows()
    weights = torch.nn.Parameter(torch.empty(4, 6, device="meta"))
    rows.places = lambda: [(weights, 0, weights)]
    assert not BlockwiseAdamW([weights], **OPTIONS).hand_on(SphereRows({0: rows}, {}), lambda block: None)
