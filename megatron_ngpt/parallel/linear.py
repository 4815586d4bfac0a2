"""Linear layers without bias over the tensor ranks: column parallel (split outputs), then row parallel (split inputs).

A pair of them needs one entry and one exit of the tensor region, wherever the activations between blocks are whole or split along
the sequence. Shapes: B batch, T sequence, D hidden, O outputs here, I inputs here.
"""

import torch
import torch.nn.functional as F
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.regions import copy_to_ranks, gather_sequence, reduce_from_ranks, reduce_to_sequence


def enter_region(x: torch.Tensor, axis: Axis, sequence: bool) -> torch.Tensor:
    """What column-parallel layers read: [B, T, D] on every tensor rank, from whole ([B, T, D]) or split ([B, T/t, D]) activations."""
    return gather_sequence(x, axis) if sequence else copy_to_ranks(x, axis)


def leave_region(x: torch.Tensor, axis: Axis, sequence: bool) -> torch.Tensor:
    """The sum of row-parallel outputs [B, T, D], whole or as this rank's slice [B, T/t, D]."""
    return reduce_to_sequence(x, axis) if sequence else reduce_from_ranks(x, axis)


class ColumnParallelLinear(nn.Module):
    """x W^T with the outputs divided over tensor ranks. Weight [O, D]: each row a vector along the hidden axis.

    With a `scale` [O] it computes scale ∘ (W x), folded into the weight (`ScaledLinear`).
    """

    def __init__(self, record: ParameterRecord, axis: Axis):
        super().__init__()
        self.weight = parameter(record, axis)

    def forward(self, x_BTD: torch.Tensor, scale_O: torch.Tensor | None = None) -> torch.Tensor:
        return linear(x_BTD, self.weight, scale_O)


class RowParallelLinear(nn.Module):
    """x W with the inputs divided over tensor ranks; the result is a partial sum. Weight [I, D], stored transposed so that each row is
    a vector along the hidden axis and ZeRO's flat partitions cut few of them."""

    def __init__(self, record: ParameterRecord, axis: Axis):
        super().__init__()
        self.weight = parameter(record, axis)

    def forward(self, x_BTI: torch.Tensor) -> torch.Tensor:
        return x_BTI @ self.weight


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """scale ∘ (W x) in the weight's dtype; without a scale, W x."""
    x = x.to(weight.dtype)
    if scale is None:
        return F.linear(x, weight)
    if not torch.is_grad_enabled() and x.numel() < x.shape[-1] ** 2:  # fewer tokens than inputs: scaling the outputs is the smaller pass
        return (F.linear(x, weight) * scale).to(weight.dtype)
    return ScaledLinear.apply(x, weight, scale)


class ScaledLinear(torch.autograd.Function):
    """scale ∘ (W x) = (scale ∘ W) x, the scale folded into the weight's rows.

    Replaces a pass over [tokens, O] by one over [O, D]; the scale's gradient is a row sum over the weight's gradient instead of a
    reduction over all tokens. The folded weight is recomputed in backward, not saved.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, scale)
        return F.linear(x, _fold(weight, scale))

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight, scale = ctx.saved_tensors
        grad_x = grad @ _fold(weight, scale)
        grad_folded = grad.flatten(0, -2).t() @ x.flatten(0, -2)
        grad_weight = (grad_folded * scale.unsqueeze(1)).to(weight.dtype)
        grad_scale = (grad_folded.float() * weight).sum(1)
        return grad_x, grad_weight, grad_scale


def _fold(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight * scale.unsqueeze(1)).to(weight.dtype)
