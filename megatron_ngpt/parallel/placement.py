"""Where a parameter's local tensor lies in the global one: what tensor parallelism did to it."""

from dataclasses import dataclass

import torch
from torch import nn

from megatron_ngpt.parallel.grid import Axis


@dataclass(frozen=True)
class Placement:
    """A box of a global tensor of one or two dimensions.

    Attributes:
        shape: the global tensor's shape, without vocabulary padding.
        local: this tensor rank's shape, padding included.
        offset: where the box starts in the global tensor.
        sharded: tensor ranks hold different numbers (False: replicas).
    """

    shape: tuple[int, ...]
    local: tuple[int, ...]
    offset: tuple[int, ...]
    sharded: bool

    @property
    def cuts_rows(self) -> bool:
        """Rows are longer than the piece of them held here."""
        return len(self.shape) == 2 and self.local[1] < self.shape[1]


def place(shape: tuple[int, ...], axis: Axis, dim: int | None, padded: int | None = None) -> Placement:
    """The box of a tensor of `shape` that this rank of `axis` holds when `dim` is divided (None: not divided).

    `padded` is the size of `dim` with padding, where `shape` alone does not divide.
    """
    if dim is None:
        return Placement(shape, shape, (0,) * len(shape), sharded=False)
    whole = padded or shape[dim]
    if whole % axis.size:
        raise ValueError(f"{whole} does not divide over {axis.size} tensor ranks")
    local, offset = list(shape), [0] * len(shape)
    local[dim] = whole // axis.size
    offset[dim] = axis.rank * local[dim]
    return Placement(shape, tuple(local), tuple(offset), sharded=axis.size > 1)


def parameter(placement: Placement, axis: Axis) -> nn.Parameter:
    """A parameter of zeros that remembers its placement; values come later, through the shards map.

    DeepSpeed counts a parameter in the gradient norm of every tensor rank if it is flagged `model_parallel`, else only where its
    "model parallel rank" is 0. In a pipeline that rank also counts stages, so replicas are flagged on tensor rank 0 of each stage:
    then every number is counted exactly once in every layout.
    """
    made = nn.Parameter(torch.zeros(placement.local))
    made.placement = placement
    made.model_parallel = placement.sharded or axis.rank == 0
    return made
