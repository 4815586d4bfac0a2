"""The rows of the spherical weights as this rank's masters hold them, and the reduction over those that are cut.

A row (a unit vector of a matrix) may be whole here, or a piece of it: ZeRO's flat partitions cut rows over the replicas' ranks, a
tensor-sharded hidden axis cuts every row over tensor ranks, and both may happen to one row. A quantity that is a sum over a row's
entries (a sum of squares, a dot product) is then the sum of the pieces' partial sums. Only those travel.

Per reduction a rank contributes 4 bytes · (rows that ZeRO cuts anywhere among the replicas) over the replicas, and
4 bytes · (rows of the hidden-sharded matrices that it holds) over the tensor group.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.collectives import reduce_vector
from megatron_ngpt.parallel.grid import Axis, RankGrid
from megatron_ngpt.parallel.shards import Shard


@dataclass
class Rows:
    """Rows of one optimiser group: fp32 views [rows, columns] of the masters, and the shard each is a view of."""

    pieces: list[torch.Tensor] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)

    def add(self, shard: Shard, piece: torch.Tensor) -> None:
        """One more piece."""
        self.pieces.append(piece)
        self.shards.append(shard)

    def places(self) -> Iterator[tuple[torch.Tensor, int, torch.Tensor]]:
        """Of each piece: the buffer it is a view of, where it starts in the flattened buffer, and the piece."""
        for piece, shard in zip(self.pieces, self.shards, strict=True):
            yield shard.buffer, piece.storage_offset() - shard.buffer.storage_offset(), piece


class CutRows:
    """The pieces of one optimiser group that are not whole rows here, and how their partial sums become sums.

    Pieces of tensor-cut rows come first, so that what the tensor ranks reduce is one run.
    """

    def __init__(self, grid: RankGrid, device: torch.device):
        self.grid, self.device = grid, device
        self.rows = Rows()
        self._tensor_rows = 0
        self._own = torch.empty(0, dtype=torch.int64)  # positions in the vector of partial sums of the rows that ZeRO cuts
        self._shared = self._own  # their places in the vector that the replicas reduce
        self._shared_size = 0
        self.bytes_reduced = 0

    def add(self, shard: Shard, piece: torch.Tensor) -> None:
        """One more piece; tensor-cut ones must be added first."""
        self.rows.add(shard, piece)
        if shard.placement.cuts_rows:
            self._tensor_rows += piece.shape[0]

    def share(self, own: list[int], shared: list[int], size: int) -> None:
        """Say which positions of the partial sums the replicas reduce, and where they stand in its vector of `size`."""
        self._own, self._shared = (torch.tensor(places, dtype=torch.int64, device=self.device) for places in (own, shared))
        self._shared_size = size

    def joined(self, partial_sums: list[torch.Tensor]) -> torch.Tensor:
        """The pieces' partial sums as one vector, fp32 [rows here], for `total`."""
        return torch.cat(partial_sums) if partial_sums else torch.empty(0, device=self.device)

    def total(self, partial_sums: torch.Tensor) -> torch.Tensor:
        """The sums over whole rows (fp32 [rows here]) from those over the pieces; collective over the groups that share rows."""
        if self._shared_size and self.grid.replicas.size > 1:
            vector = partial_sums.new_zeros(self._shared_size)
            vector[self._shared] = partial_sums[self._own]
            vector = self._reduce(vector, self.grid.replicas)
            partial_sums[self._own] = vector[self._shared]
        if self._tensor_rows and self.grid.tensor.size > 1:
            k = self._tensor_rows
            partial_sums[:k] = self._reduce(partial_sums[:k].clone(), self.grid.tensor)
        return partial_sums

    def _reduce(self, vector: torch.Tensor, axis: Axis) -> torch.Tensor:
        self.bytes_reduced += vector.numel() * vector.element_size()
        return reduce_vector(vector, axis)


@dataclass
class SphereRows:
    """All spherical rows here, by the index of the optimiser group that steps them: whole rows, and cut rows."""

    whole: dict[int, Rows]
    cut: dict[int, CutRows]

    @property
    def groups(self) -> list[int]:
        """Indices of the optimiser's groups that hold spherical rows on any rank of the replicas."""
        return sorted(self.whole.keys() | self.cut.keys())


def sphere_rows(shards: dict[str, Shard], grid: RankGrid) -> SphereRows:
    """Sort this rank's spherical rows into whole and cut ones (collective over the replicas, once)."""
    device = next((s.buffer.device for s in shards.values() if s.count), torch.device("cpu"))
    whole, cut = defaultdict(Rows), defaultdict(lambda: CutRows(grid, device))
    keys = defaultdict(list)  # group -> (name, row) of each row in its CutRows; None where ZeRO leaves the row whole
    spherical = [s for s in shards.values() if s.spherical]
    for shard in sorted(spherical, key=lambda s: not s.placement.cuts_rows):
        for box in shard.boxes(shard.master):
            cut_by_zero = box.values.shape[1] < shard.placement.local[1]
            if cut_by_zero or shard.placement.cuts_rows:
                cut[shard.group].add(shard, box.values)
                rows = range(box.rows.start, box.rows.stop)
                keys[shard.group] += [(shard.name, r) if cut_by_zero else None for r in rows]
            else:
                whole[shard.group].add(shard, box.values)
    for group, everywhere in _gather_keys(keys, grid.replicas).items():
        places = {key: i for i, key in enumerate(everywhere)}
        own = [i for i, key in enumerate(keys[group]) if key is not None]
        cut[group].share(own, [places[keys[group][i]] for i in own], len(everywhere))
    return SphereRows(dict(whole), dict(cut))


def _gather_keys(keys: dict, axis: Axis) -> dict[int, list]:
    """Every row that ZeRO cuts among the replicas, by optimiser group, in one order for all ranks."""
    if axis.size == 1:
        return {}
    own = {group: [k for k in found if k is not None] for group, found in keys.items()}
    gathered: list = [None] * axis.size
    dist.all_gather_object(gathered, own, group=axis.group)
    union = defaultdict(set)
    for part in gathered:
        for group, found in part.items():
            union[group].update(found)
    return {group: sorted(found) for group, found in union.items() if found}
