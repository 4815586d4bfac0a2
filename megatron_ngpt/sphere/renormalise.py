"""The one place where weights return to the sphere.

After every update each spherical row is divided by its length, in the fp32 masters, before DeepSpeed copies them to bf16 or gathers
them (`training/update.py`: torch's step hooks on the base optimiser fire inside every DeepSpeed optimiser's own step). For every row:
the local sum of squares, for cut rows one reduction of those partial sums over the ranks that share the row, and a division in place.
No weight is gathered. `rows.py` says what travels.
"""

from dataclasses import dataclass

import torch

from megatron_ngpt.parallel.compilation import when_called
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import Shard, stepped_buffers
from megatron_ngpt.sphere.rows import CutRows, SphereRows, sphere_rows

_SMALLEST = torch.finfo(torch.float32).tiny  # a row of zeros stays one, and is seen as an error of 1


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
        compiled: one compiled pass over whole rows instead of two.
    """

    def __init__(self, shards: dict[str, Shard], grid: RankGrid, optimizer=None, compiled: bool = False):
        self._rescale = _rescale_in_one_pass if compiled else _rescale
        self.rows: SphereRows = sphere_rows(shards, grid)
        self._buffers = stepped_buffers(optimizer)

    @property
    def bytes_reduced(self) -> int:
        """Bytes of partial sums this rank has contributed to reductions so far."""
        return sum(cut.bytes_reduced for cut in self.rows.cut.values())

    def groups_in(self, base: torch.optim.Optimizer) -> list[int]:
        """The groups of `stepped_buffers` that the base optimiser holds at this moment (ZeRO steps a group at a time)."""
        if self._buffers is None:
            return self.rows.groups
        stepped = {id(p) for group in base.param_groups for p in group["params"]}
        return [i for i, buffer in enumerate(self._buffers) if id(buffer) in stepped]

    @torch.no_grad()
    def renormalise(
        self, groups: list[int] | None = None, measure: bool = False, keep: torch.Tensor | None = None, whole: bool = True
    ) -> torch.Tensor | None:
        """Rescale every spherical row (of the given groups) to length 1.

        Args:
            measure: return the largest |‖w‖ − 1| of this rank's rows, before and after (fp32 [2], on the masters' device).
            keep: a scalar; where it is true all rows stay as they are, bit for bit.
            whole: also the rows that are whole here, which an optimiser in blocks has handed to `rescale` already.
        """
        errors = []
        for group in self.rows.groups if groups is None else groups:
            if whole and group in self.rows.whole:
                errors += [self.rescale(rows, measure, keep) for rows in self.rows.whole[group].pieces]
            if cut := self.rows.cut.get(group):
                norms = self._rescale_cut(cut, keep)
                if measure:
                    errors.append(_errors(norms, cut_norms(cut)))
        return torch.stack(errors).amax(0) if measure and errors else None

    def rescale(self, rows: torch.Tensor, measure: bool = False, keep: torch.Tensor | None = None) -> torch.Tensor | None:
        """Rescale these whole rows, fp32 [rows, columns], as `renormalise` does all."""
        norms = self._rescale(rows, keep)
        return _errors(norms, torch.linalg.vector_norm(rows, dim=1)) if measure else None

    def _rescale_cut(self, cut: CutRows, keep: torch.Tensor | None) -> torch.Tensor:
        norms = cut_norms(cut)
        divisors = norms if keep is None else norms.masked_fill(keep, 1.0)
        for rows, length in zip(cut.rows.pieces, divisors.split([p.shape[0] for p in cut.rows.pieces]), strict=True):
            rows.div_(length.unsqueeze(1))
        return norms


def _errors(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The largest |norm − 1| of each, [2]; a NaN is an infinite error, or it would be lost in a later maximum."""
    if not before.numel():
        return before.new_zeros(2)
    worst = torch.stack([(norms - 1).abs().max() for norms in (before, after)])
    return worst.nan_to_num_(nan=torch.inf, posinf=torch.inf)


def _rescale(rows: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    """Divide every row by its length, in place, unless all are to `keep` theirs; returns the lengths before, [rows, 1]."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(_SMALLEST)
    rows.mul_((norms if keep is None else norms.masked_fill(keep, 1.0)).reciprocal())  # a division takes a fifth longer in a cache
    return norms


_rescale_in_one_pass = when_called(_rescale, dynamic=True)


def cut_norms(cut: CutRows) -> torch.Tensor:
    """The lengths of the rows that `cut` holds pieces of, fp32 [rows here] (collective over the ranks that share them)."""
    partial = cut.joined([torch.linalg.vector_norm(p, dim=1).square_() for p in cut.rows.pieces])
    return cut.total(partial).sqrt_().clamp_min_(_SMALLEST)
