"""Matrices cut by hand: over tensor ranks as placements cut them, and those parts over data ranks wherever a test likes."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.placement import place
from megatron_ngpt.parallel.shards import Shard
from tests.records import record

_GAP = 3  # numbers of others between two runs in a buffer, and around them


@dataclass(frozen=True)
class Matrix:
    """A matrix, and how it is cut.

    Attributes:
        dim: what tensor ranks divide: 0 rows (padded to divide), 1 the hidden axis, None nothing.
        cuts: where the flattened local part is cut, one number fewer than data ranks; () for replicas.
        group: the optimiser group that steps it.
    """

    name: str
    rows: int
    columns: int
    dim: int | None = None
    cuts: tuple[int, ...] = ()
    group: int = 0
    spherical: bool = True

    def padded_rows(self, tensor_ranks: int) -> int:
        return -(-self.rows // tensor_ranks) * tensor_ranks if self.dim == 0 else self.rows

    def values(self, seed: int) -> torch.Tensor:
        """Rows of lengths around 1.5, fp32; the same on every rank."""
        generator = torch.Generator().manual_seed(1000 * seed + sum(map(ord, self.name)))
        rows = torch.randn(self.rows, self.columns, generator=generator)
        lengths = 0.5 + 2 * torch.rand(self.rows, 1, generator=generator)
        return rows / rows.norm(dim=1, keepdim=True) * lengths

    def local(self, whole: torch.Tensor, tensor_rank: int, tensor_ranks: int) -> torch.Tensor:
        """A tensor rank's part of `whole`, zeros in the padding."""
        if self.dim is None:
            return whole
        whole = torch.cat([whole, whole.new_zeros(self.padded_rows(tensor_ranks) - self.rows, self.columns)])
        return whole.chunk(tensor_ranks, self.dim)[tensor_rank]

    def run(self, data_rank: int, size: int) -> tuple[int, int]:
        """(start, stop) of a data rank's run of the flattened local part of `size` numbers."""
        bounds = (0, *self.cuts, size) if self.cuts else (0, size)
        return (bounds[data_rank], bounds[data_rank + 1]) if self.cuts else (0, size)


class HeldWeights:
    """What this rank holds of matrices: one flat buffer an optimiser group, and the shards in it."""

    def __init__(self, matrices: list[Matrix], grid: RankGrid, seed: int = 0):
        self.matrices, self.grid = matrices, grid
        self.shards: dict[str, Shard] = {}
        self.buffers = [self._lay_out(group, seed) for group in range(1 + max(m.group for m in matrices))]

    def _lay_out(self, group: int, seed: int) -> torch.nn.Parameter:
        tensor, found, pieces, at = self.grid.tensor, [], [torch.full((_GAP,), 7.0)], _GAP
        for matrix in (m for m in self.matrices if m.group == group):
            local = matrix.local(matrix.values(seed), tensor.rank, tensor.size).reshape(-1)
            start, stop = matrix.run(self.grid.replicas.rank, local.numel())
            found.append((matrix, start, stop - start, at))
            pieces += [local[start:stop], torch.full((_GAP,), 7.0)]
            at += stop - start + _GAP
        buffer = torch.nn.Parameter(torch.cat(pieces))
        for matrix, start, count, offset in found:
            made = record((matrix.rows, matrix.columns), matrix.dim, matrix.dim == 0, matrix.name, matrix.spherical)
            where = (start, count, buffer, offset, group) if count else (0, 0, None, 0, 0)
            self.shards[matrix.name] = Shard(place(made, tensor), *where)
        return buffer

    def set_gradients(self, seed: int) -> None:
        """Give every buffer the gradients of another draw of the same matrices."""
        for buffer, gradient in zip(self.buffers, HeldWeights(self.matrices, self.grid, seed).buffers, strict=True):
            buffer.grad = gradient.detach().clone()

    def whole(self, matrix: Matrix, flat_buffers: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrix [rows, columns] and its padding rows, put together from every rank's buffers, fp32.

        Replicas must be equal. Knows nothing of boxes: runs are laid end to end, parts side by side.
        """
        shard = self.shards[matrix.name]
        run = flat_buffers[matrix.group].detach()[shard.offset : shard.offset + shard.count].clone()
        place_of_run = (self.grid.tensor.rank, shard.start, run)
        everywhere: list = [None] * self.grid.world.size
        dist.all_gather_object(everywhere, place_of_run)
        parts = []
        for tensor_rank in range(self.grid.tensor.size):
            runs = sorted(((start, run) for t, start, run in everywhere if t == tensor_rank and len(run)), key=lambda r: r[0])
            if not matrix.cuts:
                assert all(torch.equal(run, runs[0][1]) for _, run in runs), "data replicas differ"
                runs = runs[:1]
            parts.append(torch.cat([run for _, run in runs]))
        if matrix.dim is None:
            assert all(torch.equal(part, parts[0]) for part in parts), "tensor replicas differ"
            return parts[0].view(matrix.rows, matrix.columns), torch.empty(0)
        width = matrix.columns // (self.grid.tensor.size if matrix.dim == 1 else 1)
        joined = torch.cat([part.view(-1, width) for part in parts], matrix.dim)
        return joined[: matrix.rows], joined[matrix.rows :]

    def outside_is_untouched(self) -> bool:
        """The numbers between the runs are what they were."""
        for group, buffer in enumerate(self.buffers):
            inside = torch.zeros(buffer.numel(), dtype=torch.bool)
            for shard in self.shards.values():
                if shard.count and shard.group == group:
                    inside[shard.offset : shard.offset + shard.count] = True
            if not (buffer.detach()[~inside] == 7.0).all():
                return False
        return True
