"""The one place where weights return to the sphere.

After every update each spherical row is divided by its length, in the fp32 masters, before DeepSpeed copies them to bf16 or gathers
them: torch's step hooks on the base optimiser fire inside every DeepSpeed optimiser's own step. For every row: the local sum of
squares, for cut rows one reduction of those partial sums over the ranks that share the row, and a division in place.
No weight is gathered. `rows.py` says what travels.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.regions import reduce_vector
from megatron_ngpt.parallel.shards import Shard, stepped_buffers
from megatron_ngpt.sphere.rows import CutRows, Rows, SphereRows, sphere_rows

_SMALLEST = torch.finfo(torch.float32).tiny  # a row of zeros stays one, and is seen as an error of 1
_CHUNK_BYTES = 1 << 21  # of rows on a CPU, at a time: the second pass over them then finds them in a cache


@dataclass(frozen=True)
class NormErrors:
    """The largest |‖w‖ − 1| over the spherical rows, before rescaling and after."""

    before: float
    after: float


class Renormaliser:
    """Returns this rank's spherical masters to the sphere, and tells how far they had left it.

    Args:
        shards: `parallel.shards.shards_of` the model.
        grid: where this rank stands; the groups that share rows must call together.
        optimizer: the DeepSpeed optimizer the shards were made with.
        compiled: one compiled pass over whole rows instead of two in chunks.
    """

    def __init__(self, shards: dict[str, Shard], grid: RankGrid, optimizer=None, compiled: bool = False):
        self.grid = grid
        self._rescale = _compiled_rescale if compiled else _rescale_in_chunks
        self.rows: SphereRows = sphere_rows(shards, grid)
        self._buffers = stepped_buffers(optimizer)
        self.measure = False
        self._worst = [0.0, 0.0]

    @property
    def bytes_reduced(self) -> int:
        """Bytes of partial sums this rank has contributed to reductions so far."""
        return sum(cut.bytes_reduced for cut in self.rows.cut.values())

    def attach(self, base: torch.optim.Optimizer) -> None:
        """Renormalise inside every step of the base optimiser, only what that step moved (ZeRO steps a group at a time)."""

        def after_step(optimizer, _args, _kwargs):
            self.renormalise(self.groups_in(optimizer))

        base.register_step_post_hook(after_step)

    def groups_in(self, base: torch.optim.Optimizer) -> list[int]:
        """The groups of `stepped_buffers` that the base optimiser holds at this moment."""
        if self._buffers is None:
            return self.rows.groups
        stepped = {id(p) for group in base.param_groups for p in group["params"]}
        return [i for i, buffer in enumerate(self._buffers) if id(buffer) in stepped]

    @torch.no_grad()
    def renormalise(self, groups: list[int] | None = None) -> None:
        """Rescale every spherical row (of the given groups) to length 1; with `measure` set, errors are noted for `take_errors`."""
        for group in self.rows.groups if groups is None else groups:
            if whole := self.rows.whole.get(group):
                self._rescale_whole(whole)
            if cut := self.rows.cut.get(group):
                self._rescale_cut(cut)

    def _rescale_whole(self, whole: Rows) -> None:
        for rows in whole.pieces:
            norms = self._rescale(rows)
            if self.measure:
                self._note(norms, torch.linalg.vector_norm(rows, dim=1))

    def _rescale_cut(self, cut: CutRows) -> None:
        norms = cut_norms(cut)
        for rows, length in zip(cut.rows.pieces, norms.split([p.shape[0] for p in cut.rows.pieces]), strict=True):
            rows.div_(length.unsqueeze(1))
        if self.measure:
            self._note(norms, cut_norms(cut))

    def _note(self, before: torch.Tensor, after: torch.Tensor) -> None:
        for i, norms in enumerate((before, after)):
            if norms.numel():
                error = (norms - 1).abs().max().nan_to_num_(nan=torch.inf, posinf=torch.inf)  # NaN would be lost in a later maximum
                self._worst[i] = max(self._worst[i], error.item())

    def take_errors(self) -> NormErrors:
        """The largest errors noted since the last call, over all ranks (collective over the world); `measure` is unset."""
        worst = torch.tensor(self._worst)
        if self.grid.world.size > 1:
            worst = reduce_vector(worst, self.grid.world, dist.ReduceOp.MAX)
        self.measure, self._worst = False, [0.0, 0.0]
        return NormErrors(*worst.tolist())


@torch.compile(dynamic=True)
def _compiled_rescale(rows: torch.Tensor) -> torch.Tensor:
    """Divide every row by its length, in place; returns the lengths before, [rows, 1]."""
    norms = rows.square().sum(1, keepdim=True).sqrt().clamp_min(_SMALLEST)
    rows.div_(norms)
    return norms


def _rescale_in_chunks(rows: torch.Tensor) -> torch.Tensor:
    """The same, without a compiler."""
    norms = rows.new_empty(rows.shape[0], 1)
    height = rows.shape[0]
    if rows.device.type == "cpu":
        height = max(1, _CHUNK_BYTES // (4 * rows.shape[1]))
    for chunk, lengths in zip(rows.split(height), norms.split(height), strict=True):
        torch.linalg.vector_norm(chunk, dim=1, keepdim=True, out=lengths)
        chunk.div_(lengths.clamp_min_(_SMALLEST))
    return norms


def cut_norms(cut: CutRows) -> torch.Tensor:
    """The lengths of the rows that `cut` holds pieces of, fp32 [rows here] (collective over the ranks that share them)."""
    if cut.rows.pieces:
        partial = torch.cat([torch.linalg.vector_norm(p, dim=1).square_() for p in cut.rows.pieces])
    else:
        partial = torch.empty(0)
    return cut.total(partial).sqrt_().clamp_min_(_SMALLEST)
