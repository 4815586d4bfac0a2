"""Collectives that give a new tensor, in eager code and within compiled graphs.

A graph that is being compiled gets each as one operator, into which neither dynamo nor Inductor looks, so that none breaks it. When the
graph runs, the operator makes the same call of torch.distributed as eager code does: the clock, the watchdog and the tests that count
bytes see it, which they would not of torch's functional collectives. All ranks compile one graph, and so one order of its collectives.
"""

from collections.abc import Callable
from functools import wraps

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group

from megatron_ngpt.parallel.grid import ALONE, Axis

Shape = Callable[..., list[int]]


def axis_named(group: str) -> Axis:
    """The axis whose process group has this name, which is all of it that an operator's arguments can carry."""
    if not group:
        return ALONE
    ranks = _resolve_process_group(group)
    return Axis(ranks.rank(), ranks.size(), ranks)


def _also_in_graphs(shape: Shape) -> Callable:
    """A collective (x, axis, *dims), and its operator, whose result has `shape` (that of x, ranks, *dims) and the dtype of x."""

    def decorate(collective: Callable) -> Callable:
        name = f"megatron_ngpt::{collective.__name__}"

        @torch.library.custom_op(name, mutates_args=(), schema="(Tensor x, str group, int[] dims) -> Tensor")
        def operator(x: torch.Tensor, group: str, dims: list[int]) -> torch.Tensor:
            return collective(x, axis_named(group), *dims)

        @operator.register_fake
        def _(x: torch.Tensor, group: str, dims: list[int]) -> torch.Tensor:
            return x.new_empty(shape(list(x.shape), axis_named(group).size, *dims))

        @wraps(collective)
        def chosen(x: torch.Tensor, axis: Axis, *dims: int) -> torch.Tensor:
            if torch.compiler.is_compiling():
                return operator(x, axis.name, list(dims))
            return collective(x, axis, *dims)

        return chosen

    return decorate


def _unchanged(shape: list[int], ranks: int) -> list[int]:
    return shape


def _gathered(shape: list[int], ranks: int, dim: int) -> list[int]:
    return [size * ranks if at == dim % len(shape) else size for at, size in enumerate(shape)]


def _scattered(shape: list[int], ranks: int, dim: int) -> list[int]:
    return [size // ranks if at == dim % len(shape) else size for at, size in enumerate(shape)]


def _exchanged(shape: list[int], ranks: int, split: int, join: int) -> list[int]:
    return _gathered(_scattered(shape, ranks, split), ranks, join)


@_also_in_graphs(_unchanged)
def all_reduce(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The sum over the axis."""
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=axis.group)
    return x


@_also_in_graphs(_gathered)
def all_gather(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """Every rank's slice, joined along `dim` in rank order."""
    gathered = x.new_empty((axis.size, *x.shape))
    dist.all_gather_single(gathered.view(-1), x.contiguous().view(-1), group=axis.group)
    return torch.cat(gathered.unbind(0), dim)


@_also_in_graphs(_scattered)
def reduce_scatter(x: torch.Tensor, axis: Axis, dim: int) -> torch.Tensor:
    """This rank's slice along `dim` of the sum over the axis."""
    pieces = torch.stack(x.chunk(axis.size, dim))
    own = torch.empty_like(pieces[0])
    dist.reduce_scatter_single(own.view(-1), pieces.view(-1), group=axis.group)
    return own


@_also_in_graphs(_exchanged)
def all_to_all(x: torch.Tensor, axis: Axis, split: int, join: int) -> torch.Tensor:
    """Rank j gets every rank's j-th slice along `split`, joined along `join`."""
    pieces = torch.stack(x.chunk(axis.size, split))
    received = torch.empty_like(pieces)
    dist.all_to_all_single(received.view(-1), pieces.view(-1), group=axis.group)
    return torch.cat(received.unbind(0), join)


def reduce_vector(vector: torch.Tensor, axis: Axis, op: dist.ReduceOp = dist.ReduceOp.SUM) -> torch.Tensor:
    """A small vector reduced over the axis, where it was; with nccl one of the host (offloaded masters) talks through the device."""
    device = vector.device
    if dist.get_backend(axis.group) == "nccl":
        vector = vector.cuda()
    dist.all_reduce(vector, op=op, group=axis.group)
    return vector.to(device)
