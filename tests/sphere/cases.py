"""Ways to cut spherical matrices over ranks, and what the documented traffic of each is."""

import random
from dataclasses import dataclass

from megatron_ngpt.parallel.grid import RankGrid
from tests.sphere.cut_weights import Matrix


@dataclass(frozen=True)
class Case:
    """Matrices cut over data · tensor ranks."""

    data: int
    tensor: int
    matrices: tuple[Matrix, ...]

    @property
    def ranks(self) -> int:
        return self.data * self.tensor


def one(data: int, *cuts: int, rows: int = 5, columns: int = 8) -> Case:
    """One matrix over data ranks."""
    return Case(data, 1, (Matrix("w", rows, columns, cuts=cuts),))


def scattered(data: int, seed: int) -> Case:
    """Three matrices in two groups, cut at random; some ranks get nothing of some."""
    draw = random.Random(seed)
    matrices = []
    for name in "abc":
        rows, columns = draw.randint(1, 5), draw.randint(1, 9)
        cuts = tuple(sorted(draw.randint(0, rows * columns) for _ in range(data - 1)))
        matrices.append(Matrix(name, rows, columns, cuts=cuts, group=draw.randint(0, 1)))
    return Case(data, 1, tuple(matrices))


WHOLE = {
    "whole rows": Case(1, 1, (Matrix("w", 7, 12), Matrix("v", 3, 5, group=1))),
    "replicas": Case(2, 1, (Matrix("w", 7, 12),)),
    "rows divided over tensor ranks, with padding": Case(1, 2, (Matrix("w", 7, 12, dim=0),)),
    "a cut between rows": one(2, 16),
}
ZERO = {
    "a row on two ranks": one(2, 19),
    "the first number alone": one(2, 1),
    "all but the last number": one(2, 39),
    "two rows on two ranks each": one(3, 12, 27),
    "a row on three ranks": one(3, 17, 22),
    "a matrix of one row on three ranks": one(3, 2, 5, rows=1),
    "a rank that holds nothing": one(3, 13, 13),
    "the first rank holds nothing": one(3, 0, 21),
    "all on the last rank": one(3, 0, 0),
    **{f"scattered {seed}": scattered(2 + seed % 2, seed) for seed in range(8)},
}
HIDDEN = {
    "hidden axis over two tensor ranks": Case(1, 2, (Matrix("e", 7, 12, dim=1),)),
    "beside matrices with whole rows": Case(1, 2, (Matrix("w", 4, 12, dim=0), Matrix("e", 7, 12, dim=1), Matrix("v", 3, 12))),
}
BOTH = {
    "hidden axis and ZeRO's cut": Case(2, 2, (Matrix("e", 7, 12, dim=1, cuts=(21,)),)),
    "a cut through a row that is padding on one tensor rank": Case(2, 2, (Matrix("w", 7, 12, dim=0, cuts=(40,)),)),
    "a rank without the hidden-sharded matrix": Case(2, 2, (
        Matrix("e", 7, 12, dim=1, cuts=(42,)), Matrix("w", 4, 12, dim=0, cuts=(7,)),
    )),
    "all together": Case(2, 2, (
        Matrix("w", 7, 12, dim=0, cuts=(31,)), Matrix("e", 5, 12, dim=1, cuts=(8,)),
        Matrix("v", 5, 12, cuts=(25,), group=1), Matrix("z", 3, 12, dim=0, cuts=(16,), group=1),
        Matrix("scale", 1, 12, cuts=(5,), spherical=False),
    )),
}  # fmt: skip
CASES = WHOLE | ZERO | HIDDEN | BOTH


def cut_rows(matrix: Matrix, tensor_rank: int, tensor_ranks: int) -> set[int]:
    """Local rows, padding excluded, that a cut of the data ranks goes through: some of the row lies before it, some after."""
    rows = matrix.padded_rows(tensor_ranks) // (tensor_ranks if matrix.dim == 0 else 1)
    width = matrix.columns // (tensor_ranks if matrix.dim == 1 else 1)
    real = range(min(rows, max(0, matrix.rows - tensor_rank * rows)) if matrix.dim == 0 else rows)
    return {row for row in real if any(row * width < cut < (row + 1) * width for cut in matrix.cuts)}


def held_rows(matrix: Matrix, data_rank: int, width: int) -> int:
    """Rows of which a data rank's run holds a number."""
    start, stop = matrix.run(data_rank, matrix.rows * width)
    return sum(start < (row + 1) * width and row * width < stop for row in range(matrix.rows))


def documented_bytes(case: Case, grid: RankGrid) -> int:
    """4 · rows that ZeRO cuts anywhere in the data group, and 4 · rows held of hidden-sharded matrices, for one reduction."""
    total = 0
    for matrix in (m for m in case.matrices if m.spherical):
        if grid.replicas.size > 1:
            total += 4 * len(cut_rows(matrix, grid.tensor.rank, grid.tensor.size))
        if matrix.dim == 1 and grid.tensor.size > 1:
            total += 4 * held_rows(matrix, grid.replicas.rank, matrix.columns // grid.tensor.size)
    return total
