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
on an axis of one rank all return `x` itself. Dynamo does not look inside: a compiled block breaks here, on purpose
(`torch._disable_dynamo`: unlike `torch._dynamo.disable` it does not load the compiler before the first call).
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.grid import Axis

Move = Callable[[torch.Tensor, Axis], torch.Tensor]


def all_reduce(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The sum over the axis, in a new tensor."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=axis.group)
    return x


def reduce_vector(vector: torch.Tensor, axis: Axis, op: dist.ReduceOp = dist.ReduceOp.SUM) -> torch.Tensor:
    """A small vector reduced over the axis, where it was; with nccl one of the host (offloaded masters) talks through the device."""
    device = vector.device
    if dist.get_backend(axis.group) == "nccl":
        vector = vector.cuda()
    dist.all_reduce(vector, op=op, group=axis.group)
    return vector.to(device)


def all_gather(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """Every rank's slice, joined along `dim` in rank order."""
    gathered = x.new_empty((axis.size, *x.shape))
    dist.all_gather_single(gathered.view(-1), x.contiguous().view(-1), group=axis.group)
    return torch.cat(gathered.unbind(0), dim)


def reduce_scatter(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """This rank's slice along `dim` of the sum over the axis."""
    pieces = torch.stack(x.chunk(axis.size, dim))
    own = torch.empty_like(pieces[0])
    dist.reduce_scatter_single(own.view(-1), pieces.view(-1), group=axis.group)
    return own


def own_slice(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """This rank's slice along `dim`."""
    return x.chunk(axis.size, dim)[axis.rank].contiguous()


def all_to_all(x: torch.Tensor, axis: Axis, split: int, join: int) -> torch.Tensor:
    """Rank j gets every rank's j-th slice along `split`, joined along `join`."""
    pieces = torch.stack(x.chunk(axis.size, split))
    received = torch.empty_like(pieces)
    dist.all_to_all_single(received.view(-1), pieces.view(-1), group=axis.group)
    return torch.cat(received.unbind(0), join)


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
        return cross(x, axis)

    @torch._disable_dynamo
    def cross(x: torch.Tensor, axis: Axis) -> torch.Tensor:
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
    lambda x, a: all_to_all(x, a, split=1, join=-1), lambda x, a: all_to_all(x, a, split=-1, join=1), "[B, T, D/t] to [B, T/t, D]."
)


def _sequence_to_heads(x, axis):
    return all_to_all(x, axis, split=2, join=1)


def _heads_to_sequence(x, axis):
    return all_to_all(x, axis, split=1, join=2)


sequence_to_heads = _region(_sequence_to_heads, _heads_to_sequence, "[B, T/c, H, K] to [B, T, H/c, K].")
heads_to_sequence = _region(_heads_to_sequence, _sequence_to_heads, "[B, T, H/c, K] to [B, T/c, H, K].")
