"""Counts what collectives move, at the one place that all of them pass: the methods of torch's process groups, called by us, by
torch's own functions or by DeepSpeed. Under each name, the bytes of a call are those of the larger of what a rank gives and gets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

KINDS = {  # method of a process group -> its name here
    "allreduce": "all_reduce", "allreduce_coalesced": "all_reduce", "broadcast": "broadcast", "reduce": "reduce",
    "allgather": "all_gather", "allgather_coalesced": "all_gather", "_allgather_base": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather", "all_gather_single": "all_gather", "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter", "_reduce_scatter_base": "reduce_scatter", "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter", "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall": "all_to_all", "alltoall_base": "all_to_all", "all_to_all_single": "all_to_all", "gather": "gather", "scatter": "scatter",
    "send": "send", "recv": "receive", "recv_anysource": "receive", "barrier": "barrier",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One collective that this rank took part in: its kind, the ranks of its group, and its bytes."""

    kind: str
    ranks: tuple[int, ...]
    nbytes: int


@contextmanager
def counted() -> Iterator[list[Call]]:
    """The collectives of the block, in order; groups of one rank move nothing and are left out."""
    calls: list[Call] = []
    originals = {name: method for name, method in vars(dist.ProcessGroup).items() if name in KINDS}  # as they are bound

    def counting(name: str, original):
        def method(group, *args, **kwargs):
            ranks = tuple(dist.get_process_group_ranks(group))
            if len(ranks) > 1:
                calls.append(Call(KINDS[name], ranks, max((_bytes(argument) for argument in args), default=0)))
            return original.__get__(group)(*args, **kwargs)

        return method

    for name, original in originals.items():
        setattr(dist.ProcessGroup, name, counting(name, original))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)


def _bytes(argument) -> int:
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    return sum(map(_bytes, argument)) if isinstance(argument, (list, tuple)) else 0
