"""Rows return to the sphere wherever they lie: matrices put together from all ranks against float64, and what travels."""

import math
import re
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.parallel.grid import RankGrid, make_grid
from megatron_ngpt.sphere.renormalise import Renormaliser
from megatron_ngpt.sphere.rows import CutRows
from tests.on_ranks import RankFailure, on_ranks
from tests.sphere.cases import BOTH, CASES, HIDDEN, ZERO, Case, documented_bytes
from tests.sphere.cut_weights import HeldWeights, Matrix

TOLERANCE = 1e-6


def check_rows(weights: HeldWeights) -> None:
    """Every spherical matrix equals its float64 row-normalised self, all else is as it was."""
    for matrix in weights.matrices:
        found, padding = weights.whole(matrix, weights.buffers)
        wanted = matrix.values(0).double()
        if matrix.spherical:
            wanted = wanted / wanted.square().sum(1, keepdim=True).sqrt()
        off = (found.double().square().sum(1).sqrt() - 1).abs().max() if matrix.spherical else 0.0
        assert off < TOLERANCE, f"{matrix.name}: a row's length is off by {off:.3g}"
        assert (found - wanted).abs().max() < TOLERANCE, matrix.name
        assert not padding.any(), f"{matrix.name}: padding is no longer zero"
    assert weights.outside_is_untouched()


def check_norm_errors(errors: torch.Tensor | None, weights: HeldWeights) -> None:
    """The largest over the ranks; a rank that holds nothing has none."""
    lengths = torch.cat([m.values(0).double().square().sum(1).sqrt() for m in weights.matrices if m.spherical])
    worst = torch.zeros(2) if errors is None else errors
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    before, after = worst.tolist()
    assert before == pytest.approx((lengths - 1).abs().max().item(), rel=1e-5)
    assert after < TOLERANCE


def check_case(case: Case, without_reduction: bool = False) -> None:
    if without_reduction:
        CutRows._reduce = lambda self, vector, axis: vector
    grid = make_grid(tensor=case.tensor)
    weights = HeldWeights(list(case.matrices), grid)
    renormaliser = Renormaliser(weights.shards, grid)
    errors = renormaliser.renormalise(measure=True)
    check_rows(weights)
    check_norm_errors(errors, weights)
    measured = renormaliser.bytes_reduced  # lengths before and after
    assert measured == 2 * documented_bytes(case, grid)
    assert renormaliser.renormalise() is None
    assert renormaliser.bytes_reduced - measured == documented_bytes(case, grid)
    check_rows(weights)


def check_cases(names: list[str]) -> None:
    for name in names:
        try:
            check_case(CASES[name])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def layout(name: str) -> tuple[int, int]:
    return CASES[name].data, CASES[name].tensor


BY_LAYOUT = {key: list(names) for key, names in groupby(sorted(CASES, key=layout), layout)}


@pytest.mark.parametrize("names", BY_LAYOUT.values(), ids=map(str, BY_LAYOUT))
def test_rows_are_on_the_sphere_and_only_partial_sums_travel(names):
    on_ranks(CASES[names[0]].ranks, check_cases, names)


@pytest.mark.parametrize("case", [
    pytest.param(ZERO["a row on two ranks"], id="ZeRO's cut"),
    pytest.param(HIDDEN["hidden axis over two tensor ranks"], id="tensor-sharded hidden axis"),
    pytest.param(ZERO["a row on three ranks"], id="a row on three ranks"),
    pytest.param(BOTH["hidden axis and ZeRO's cut"], id="both"),
])  # fmt: skip
def test_without_the_reduction_the_same_check_fails(case):
    with pytest.raises(RankFailure, match="a row's length is off by") as failure:
        on_ranks(case.ranks, check_case, case, True)
    assert max(map(float, re.findall(r"length is off by (\d\S*)", str(failure.value)))) > 1e-3


# One rank, in this process.


def alone(*matrices: Matrix) -> tuple[HeldWeights, Renormaliser]:
    weights = HeldWeights(list(matrices), RankGrid())
    return weights, Renormaliser(weights.shards, RankGrid())


def lengths(weights: HeldWeights, name: str) -> torch.Tensor:
    shard = weights.shards[name]
    return shard.master.view(shard.placement.local).double().norm(dim=1)


def test_the_error_after_is_measured_not_assumed():
    weights, renormaliser = alone(Matrix("w", 7, 12), Matrix("v", 3, 12))
    with torch.no_grad():
        weights.shards["v"].master[:12] = 0  # a row without a direction can't come back
    before, after = renormaliser.renormalise(measure=True).tolist()
    assert after == 1.0 and before >= 1.0
    assert torch.isfinite(weights.buffers[0]).all()


def test_a_nan_is_an_infinite_error():
    weights, renormaliser = alone(Matrix("v", 3, 12), Matrix("w", 7, 12), Matrix("x", 3, 12))
    with torch.no_grad():
        weights.shards["w"].master[30] = torch.nan
    assert renormaliser.renormalise(measure=True).tolist() == [math.inf, math.inf]


def test_only_groups_asked_for_are_rescaled():
    weights, renormaliser = alone(Matrix("w", 7, 12, group=0), Matrix("v", 3, 12, group=1))
    renormaliser.renormalise([1])
    assert (lengths(weights, "v") - 1).abs().max() < TOLERANCE < (lengths(weights, "w") - 1).abs().min()


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_are_to_be_kept_stay_bit_for_bit(compiled):
    weights = HeldWeights([Matrix("w", 7, 12)], RankGrid())
    renormaliser = Renormaliser(weights.shards, RankGrid(), compiled=compiled)
    before = weights.shards["w"].master.clone()
    errors = renormaliser.renormalise(measure=True, keep=torch.tensor(True))
    assert torch.equal(weights.shards["w"].master, before)
    assert errors[0] == errors[1] > 0.1
    renormaliser.renormalise(keep=torch.tensor(False))
    assert (lengths(weights, "w") - 1).abs().max() < TOLERANCE


def test_groups_in_an_optimiser_that_steps_one_at_a_time():
    """ZeRO's way: the base optimiser holds one flat group during each of its steps."""
    weights = HeldWeights([Matrix("w", 7, 12, group=0), Matrix("v", 3, 12, group=1)], RankGrid())
    deepspeed = SimpleNamespace(fp32_partitioned_groups_flat=weights.buffers)
    renormaliser = Renormaliser(weights.shards, RankGrid(), deepspeed)
    base = torch.optim.SGD([{"params": [buffer]} for buffer in weights.buffers], lr=0.0)
    assert renormaliser.groups_in(base) == [0, 1]
    base.param_groups = base.param_groups[1:]
    assert renormaliser.groups_in(base) == [1]
