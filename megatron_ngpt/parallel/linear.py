"""Linear layers without bias over the tensor ranks: column parallel (split outputs), then row parallel (split inputs).

A pair of them needs one entry and one exit of the tensor region, wherever the activations between blocks are whole or split along
the sequence. Shapes: B batch, T sequence, D hidden, O outputs here, I inputs here.
"""

import torch
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.products import product, product_scaled_later
from megatron_ngpt.parallel.regions import copy_to_ranks, gather_sequence, reduce_from_ranks, reduce_to_sequence


def enter_region(x: torch.Tensor, axis: Axis, sequence: bool) -> torch.Tensor:
    """What column-parallel layers read: [B, T, D] on every tensor rank, from whole ([B, T, D]) or split ([B, T/t, D]) activations."""
    return gather_sequence(x, axis) if sequence else copy_to_ranks(x, axis)


def leave_region(x: torch.Tensor, axis: Axis, sequence: bool) -> torch.Tensor:
    """The sum of row-parallel outputs [B, T, D], whole or as this rank's slice [B, T/t, D]."""
    return reduce_to_sequence(x, axis) if sequence else reduce_from_ranks(x, axis)


class ColumnParallelLinear(nn.Module):
    """x W^T with the outputs divided over tensor ranks. Weight [O, D]: each row a vector along the hidden axis.

    With a `scale` [O] it computes scale ∘ (W x), folded into the weight, or W x for others to scale `later` (`products.py`).
    """

    def __init__(self, record: ParameterRecord, axis: Axis):
        super().__init__()
        self.weight = parameter(record, axis)

    def forward(self, x_BTD: torch.Tensor, scale_O: torch.Tensor | None = None, later: bool = False) -> torch.Tensor:
        return product_scaled_later(x_BTD, self.weight, scale_O) if later else product(x_BTD, self.weight, scale_O)


class RowParallelLinear(nn.Module):
    """x W with the inputs divided over tensor ranks; the result is a partial sum. Weight [I, D], stored transposed so that each row is
    a vector along the hidden axis and ZeRO's flat partitions cut few of them."""

    def __init__(self, record: ParameterRecord, axis: Axis):
        super().__init__()
        self.weight = parameter(record, axis)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        return product(x_BTI, self.weight, transposed=True)
