"""Collectives named by what they do to a region of the tensor group, each with its conjugate in backward.

| region | forward | backward |
| --- | --- | --- |
| `copy_to_ranks` | nothing | all-reduce: every rank adds its share of the gradient |
| `reduce_from_ranks` | all-reduce of partial sums | nothing |
| `gather_sequence` | all-gather along the sequence | reduce-scatter |
| `reduce_to_sequence` | reduce-scatter of partial sums along the sequence | all-gather |
| `gather_hidden` | all-gather along the hidden axis | own slice |
| `hidden_to_sequence` | all-to-all: slices of hidden become slices of sequence | the reverse all-to-all |
| `sequence_to_heads` | all-to-all: slices of sequence become slices of heads | the reverse all-to-all |
| `heads_to_sequence` | all-to-all: slices of heads become slices of sequence | the reverse all-to-all |

All take `x` of shape [batch, sequence, hidden] (`copy_to_ranks` and `reduce_from_ranks`: any shape) and the tensor `Axis`;
on an axis of one rank all return `x` itself. They break no compiled graph (`collectives.py`).
"""

from collections.abc import Callable

import torch

from megatron_ngpt.parallel.collectives import all_gather, all_reduce, all_to_all, reduce_scatter
from megatron_ngpt.parallel.grid import Axis

Move = Callable[[torch.Tensor, Axis], torch.Tensor]


def own_slice(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """This rank's slice along `dim`."""
    return x.chunk(axis.size, dim)[axis.rank].contiguous()


class _Region(torch.autograd.Function):
    """`forward_move` in forward, its conjugate `backward_move` in backward."""

    @staticmethod
    def forward(ctx, x, axis: Axis, forward_move: Move, backward_move: Move):
        ctx.axis, ctx.move = axis, backward_move
        return forward_move(x, axis)

    @staticmethod
    def backward(ctx, grad):
        return ctx.move(grad, ctx.axis), None, None, None


def _nothing(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    return x.view_as(x)


def _region(forward_move: Move, backward_move: Move, doc: str) -> Move:
    def apply(x: torch.Tensor, axis: Axis) -> torch.Tensor:
        if axis.size == 1:
            return x
        return _Region.apply(x, axis, forward_move, backward_move)

    apply.__doc__ = doc
    return apply


def _gather_sequence(x, axis):
    return all_gather(x, axis, 1)


def _reduce_sequence(x, axis):
    return reduce_scatter(x, axis, 1)


copy_to_ranks = _region(_nothing, all_reduce, "x itself; its gradient is the sum of every tensor rank's.")
reduce_from_ranks = _region(all_reduce, _nothing, "The sum of every tensor rank's partial sums.")
gather_sequence = _region(_gather_sequence, _reduce_sequence, "[B, T/t, D] slices to [B, T, D].")
reduce_to_sequence = _region(_reduce_sequence, _gather_sequence, "[B, T, D] partial sums to this rank's [B, T/t, D].")
gather_hidden = _region(lambda x, a: all_gather(x, a, -1), lambda x, a: own_slice(x, a, -1), "[B, T, D/t] slices to [B, T, D].")
hidden_to_sequence = _region(
    lambda x, a: all_to_all(x, a, 1, -1), lambda x, a: all_to_all(x, a, -1, 1), "[B, T, D/t] to [B, T/t, D]."
)


def _sequence_to_heads(x, axis):
    return all_to_all(x, axis, 2, 1)


def _heads_to_sequence(x, axis):
    return all_to_all(x, axis, 1, 2)


sequence_to_heads = _region(_sequence_to_heads, _heads_to_sequence, "[B, T/c, H, K] to [B, T, H/c, K].")
heads_to_sequence = _region(_heads_to_sequence, _sequence_to_heads, "[B, T, H/c, K] to [B, T/c, H, K].")
