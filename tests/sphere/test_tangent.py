"""Gradients lose their part along each row, wherever the row lies."""

import re

import pytest

from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.sphere.renormalise import Renormaliser
from megatron_ngpt.sphere.rows import CutRows
from megatron_ngpt.sphere.tangent import project
from tests.on_ranks import RankFailure, on_ranks
from tests.sphere.cases import BOTH, CASES, HIDDEN, WHOLE, ZERO, Case
from tests.sphere.cut_weights import HeldWeights

CHOSEN = [*WHOLE, "a row on two ranks", "a row on three ranks", "a rank that holds nothing", "scattered 1", "scattered 2",
          *HIDDEN, *BOTH]  # fmt: skip


def check_case(case: Case, without_reduction: bool = False) -> None:
    grid = make_grid(tensor=case.tensor)
    weights = HeldWeights(list(case.matrices), grid)
    renormaliser = Renormaliser(weights.shards, grid)
    renormaliser.renormalise()
    weights.set_gradients(seed=1)
    if without_reduction:
        CutRows._reduce = lambda self, vector, axis: vector
    project(renormaliser.rows, renormaliser.rows.groups)
    for matrix in case.matrices:
        found, padding = weights.whole(matrix, [buffer.grad for buffer in weights.buffers])
        gradient, rows = matrix.values(1).double(), matrix.values(0).double()
        rows /= rows.norm(dim=1, keepdim=True)
        if matrix.spherical:
            along = (found.double() * rows).sum(1).abs().max()
            assert along < 3e-6, f"{matrix.name}: left along a row: {along:.3g}"
            gradient = gradient - (gradient * rows).sum(1, keepdim=True) * rows
        assert (found - gradient).abs().max() < 3e-6, matrix.name
        assert not padding.any()


def check_cases(names: list[str]) -> None:
    for name in names:
        check_case(CASES[name])


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_are_orthogonal_to_their_rows_and_equal_float64(ranks):
    names = [name for name in CHOSEN if CASES[name].ranks == ranks]
    assert names
    on_ranks(ranks, check_cases, names)


@pytest.mark.parametrize("case", [
    pytest.param(ZERO["a row on two ranks"], id="ZeRO's cut"),
    pytest.param(HIDDEN["hidden axis over two tensor ranks"], id="tensor-sharded hidden axis"),
    pytest.param(ZERO["a row on three ranks"], id="a row on three ranks"),
])  # fmt: skip
def test_without_the_reduction_the_same_check_fails(case):
    with pytest.raises(RankFailure, match="left along a row") as failure:
        on_ranks(case.ranks, check_case, case, True)
    assert max(map(float, re.findall(r"left along a row: (\d\S*)", str(failure.value)))) > 1e-3
