"""Every region against a computation without ranks: values, and the gradient that each rank's input gets.

A case says what each rank's input is, what its output must be, by what its output is weighted in the loss, and what its
input's gradient must be. An output that is equal on all ranks counts once in the loss (common weights), unless each rank goes
on with it in its own way (own weights).
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from megatron_ngpt.parallel import regions
from megatron_ngpt.parallel.grid import Axis, make_grid
from tests.on_ranks import on_ranks

B, T, D = 2, 6, 12


def made(seed: int, *shape: int) -> torch.Tensor:
    """The same numbers on every rank; whole numbers, so that sums are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).float()


def part(x: torch.Tensor, dim: int, rank: int, ranks: int) -> torch.Tensor:
    size = x.shape[dim] // ranks
    return x.narrow(dim, rank * size, size)


@dataclass(frozen=True)
class Case:
    """(rank, ranks) -> this rank's input, its expected output, the weights of its output in the loss, the expected gradient."""

    rank_input: Callable
    output: Callable
    weights: Callable
    gradient: Callable


def whole_input(rank, ranks):
    return made(0, B, T, D)


def partial_sums(rank, ranks):
    return made(100 + rank, B, T, D)


def sum_of_partial(rank, ranks):
    return sum(partial_sums(r, ranks) for r in range(ranks))


def own_weights(rank, ranks):
    return made(200 + rank, B, T, D)


def sum_of_weights(rank, ranks):
    return sum(own_weights(r, ranks) for r in range(ranks))


def common_weights(rank, ranks):
    return made(300, B, T, D)


def slice_of(function: Callable, dim: int) -> Callable:
    return lambda rank, ranks: part(function(rank, ranks), dim, rank, ranks)


CASES = {
    "copy_to_ranks": Case(whole_input, whole_input, own_weights, sum_of_weights),
    "reduce_from_ranks": Case(partial_sums, sum_of_partial, common_weights, common_weights),
    "gather_sequence": Case(slice_of(whole_input, 1), whole_input, own_weights, slice_of(sum_of_weights, 1)),
    "reduce_to_sequence": Case(partial_sums, slice_of(sum_of_partial, 1), slice_of(common_weights, 1), common_weights),
    "gather_hidden": Case(slice_of(whole_input, 2), whole_input, common_weights, slice_of(common_weights, 2)),
    "hidden_to_sequence": Case(
        slice_of(whole_input, 2), slice_of(whole_input, 1), slice_of(common_weights, 1), slice_of(common_weights, 2)
    ),
    "sequence_to_heads": Case(
        slice_of(whole_input, 1), slice_of(whole_input, 2), slice_of(common_weights, 2), slice_of(common_weights, 1)
    ),
    "heads_to_sequence": Case(
        slice_of(whole_input, 2), slice_of(whole_input, 1), slice_of(common_weights, 1), slice_of(common_weights, 2)
    ),
}


def check_all_regions(names):
    axis = make_grid(tensor=torch.distributed.get_world_size()).tensor
    for name in names:
        case = CASES[name]
        for contiguous in (True, False):
            x = case.rank_input(axis.rank, axis.size).clone()
            if not contiguous:
                x = x.transpose(0, 2).contiguous().transpose(0, 2)
            x.requires_grad_()
            y = getattr(regions, name)(x, axis)
            torch.testing.assert_close(y, case.output(axis.rank, axis.size), rtol=0, atol=0, msg=f"{name}: value")
            (y * case.weights(axis.rank, axis.size)).sum().backward()
            torch.testing.assert_close(x.grad, case.gradient(axis.rank, axis.size), rtol=0, atol=0, msg=f"{name}: gradient")
            torch.testing.assert_close(x.detach(), case.rank_input(axis.rank, axis.size), rtol=0, atol=0, msg=f"{name}: input")


def test_a_case_for_every_region():
    documented = {line.split("`")[1] for line in regions.__doc__.splitlines() if line.startswith("| `")}
    assert documented == set(CASES)


@pytest.mark.parametrize("ranks", [2, 3])
def test_value_and_gradient_equal_those_without_ranks(ranks):
    on_ranks(ranks, check_all_regions, list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_one_rank_gets_x_itself(name):
    x = made(0, B, T, D)
    assert getattr(regions, name)(x, Axis()) is x
