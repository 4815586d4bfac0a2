"""Where a parameter's local tensor lies in the global one: what tensor parallelism did to it."""

from dataclasses import dataclass

import torch
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.parallel.grid import Axis


@dataclass(frozen=True)
class Placement:
    """The box of a parameter's global tensor, of one or two dimensions, that a tensor rank holds.

    Attributes:
        record: the parameter in the table.
        local: this tensor rank's shape, padding included.
        offset: where the box starts in the global tensor.
        sharded: tensor ranks hold different numbers (False: replicas).
    """

    record: ParameterRecord
    local: tuple[int, ...]
    offset: tuple[int, ...]
    sharded: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The global tensor's shape, without vocabulary padding."""
        return self.record.shape

    @property
    def cuts_rows(self) -> bool:
        """Rows are longer than the piece of them held here."""
        return len(self.shape) == 2 and self.local[1] < self.shape[1]


def place(record: ParameterRecord, axis: Axis) -> Placement:
    """The box that this rank of the tensor `axis` holds."""
    local = record.local_shape(axis.size)
    offset = tuple(axis.start(size) if dim == record.cut else 0 for dim, size in enumerate(local))
    return Placement(record, local, offset, sharded=record.cut is not None and axis.size > 1)


def parameter(record: ParameterRecord, axis: Axis) -> nn.Parameter:
    """A parameter of zeros that remembers its placement, and with it its record; values come later, through the shards map.

    `counted`: this rank's numbers are part of the gradient norm, so that each number is counted once in every layout: shards
    everywhere, replicas on tensor rank 0 of each stage. DeepSpeed knows it as `model_parallel`: flagged parameters count on every rank,
    others only where its "model parallel rank" is 0, which in a pipeline counts stages too.
    """
    placement = place(record, axis)
    made = nn.Parameter(torch.zeros(placement.local))
    made.placement = placement
    made.counted = made.model_parallel = placement.sharded or axis.first
    return made
