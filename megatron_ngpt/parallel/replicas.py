"""Whether ranks that hold the same numbers still hold the same, and compute with what their masters say: silent corruption, found by sums.

| what | compared over |
| --- | --- |
| parameters as the forward pass uses them (ZeRO 0 to 2; in ZeRO-0 of fp32 these are the masters) | replicas |
| parameters that tensor parallelism does not cut, or their partitions under ZeRO-3 | tensor ranks |
| a rank's working copy against its own masters (ZeRO 1 to 3, where both are on one device) | nobody else |

A master under ZeRO has no copy: once it has been published, nothing tells that it was changed.
"""

import socket
from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from megatron_ngpt.parallel.grid import Axis, RankGrid
from megatron_ngpt.parallel.shards import Shard

_BITS = {2: torch.int16, 4: torch.int32}
KINDS = ("replicas", "tensor")


@torch.no_grad()
def divergence(module: nn.Module, shards: dict[str, Shard], grid: RankGrid) -> str | None:
    """A line that names rank, host and parameter where numbers differ that must not; the same on every rank (collective; waits for the
    device). None: all is well. Between ranks travel 16 bytes a parameter, twice."""
    parameters = list(module.parameters())
    sums = torch.stack([_sums(parameter) for parameter in parameters], dim=1)  # [KINDS, parameters]
    differs = torch.stack([_differs(sums[row], getattr(grid, kind)) for row, kind in enumerate(KINDS)])
    own = torch.stack([_strays(parameter, shards[parameter.placement.record.name]) for parameter in parameters])
    wrong = (differs.any() | own.any()).long()
    if grid.world.size > 1:
        dist.all_reduce(wrong, op=dist.ReduceOp.MAX, group=grid.world.group)
    if not wrong.item():
        return None
    names = [parameter.placement.record.name for parameter in parameters]
    suspects = [(kind, names[place], sums[row, place].item()) for row, kind in enumerate(KINDS) for place in _places(differs[row])]
    mine = socket.gethostname(), suspects, [names[place] for place in _places(own)]
    everyone = [mine] * grid.world.size
    if grid.world.size > 1:
        dist.all_gather_object(everyone, mine, group=grid.world.group)
    lines = list(dict.fromkeys(_lines(everyone, grid)))
    return lines[0] + (f" (and {len(lines) - 1} more of the kind)" if len(lines) > 1 else "")


def _held(parameter: nn.Parameter) -> torch.Tensor:
    """What the forward pass has of it on this rank: all, or under ZeRO-3 a partition."""
    return getattr(parameter, "ds_tensor", parameter).detach().view(-1)


def _sums(parameter: nn.Parameter) -> torch.Tensor:
    """By kind the sum of the bits, int64 [KINDS]; 0 where other ranks hold other numbers."""
    held = _held(parameter)
    whole = held.view(_BITS[held.element_size()]).sum(dtype=torch.int64).to(parameter.device)
    none = torch.zeros_like(whole)
    return torch.stack([none if hasattr(parameter, "ds_tensor") else whole, none if parameter.placement.sharded else whole])


def _differs(sums: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Where the ranks of the axis have not all the same."""
    if axis.size == 1:
        return torch.zeros_like(sums, dtype=torch.bool)
    extremes = torch.stack([sums, -sums])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=axis.group)
    return extremes[0] != -extremes[1]


def _strays(parameter: nn.Parameter, shard: Shard) -> torch.Tensor:
    """Whether the working copy is no copy of this rank's masters (a scalar)."""
    held, master = _held(parameter), shard.master
    if shard.count == 0 or shard.buffer is parameter or held.device != master.device:
        return torch.zeros((), dtype=torch.bool, device=parameter.device)
    start = 0 if hasattr(parameter, "ds_tensor") else shard.start
    bits = _BITS[held.element_size()]
    return (held[start : start + shard.count].view(bits) != master.to(held.dtype).view(bits)).any()


def _places(found: torch.Tensor) -> list[int]:
    return found.nonzero().flatten().tolist()


def _lines(everyone: list[tuple[str, list[tuple[str, str, int]], list[str]]], grid: RankGrid) -> Iterator[str]:
    """What is wrong, with ranks and hosts."""
    where = [f"rank {rank} on {host}" for rank, (host, _, _) in enumerate(everyone)]
    for rank, (_, _, strays) in enumerate(everyone):
        for name in strays:
            yield f"{where[rank]} computes with other numbers than its masters have of {name}"
    for kind in KINDS:
        for ranks in grid.shape.slices(kind):
            by_name: dict[str, dict[int, int]] = {}
            for rank in ranks:
                for of, name, found in everyone[rank][1]:
                    if of == kind:
                        by_name.setdefault(name, {})[rank] = found
            for name, sums in by_name.items():
                usual, count = Counter(sums.values()).most_common(1)[0]
                if 2 * count > len(sums):
                    odd = ", ".join(where[rank] for rank, found in sums.items() if found != usual)
                    yield f"{odd}: {name} is not what the {count} other ranks have that hold a copy"
                else:
                    yield f"{' and '.join(where[rank] for rank in sums)} hold copies of {name} that differ, and none says which is right"
