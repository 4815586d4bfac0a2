"""What the map of shards relies on in DeepSpeed's private parts, asserted at every start.

A DeepSpeed that keeps its masters elsewhere, or cuts them otherwise, is refused in one line. Without this a parameter would be trained,
renormalised or saved in part, and nothing would say so.
"""

from collections.abc import Iterable
from itertools import pairwise

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.shards import Shard, shards_of, stepped_buffers
from megatron_ngpt.parallel.together import together

TRIED = "0.19.8"  # setup.py and constraints.txt name it too
Run = tuple[int, int]  # start and count in the flattened local tensor


def checked_shards(module: nn.Module, optimizer, base: torch.optim.Optimizer, axis: Axis) -> dict[str, Shard]:
    """`shards_of` the model under `optimizer`, which steps `base`; `axis` are the ranks that share a parameter (collective over the world).

    Raises:
        ConfigError: on every rank, naming a parameter: DeepSpeed does not hold it as the map of shards assumes.
    """

    def located() -> dict[str, Shard]:
        found: dict[str, Shard] = {}
        for parameter in module.parameters():
            try:
                found |= shards_of([parameter], optimizer)
            except (AttributeError, LookupError, TypeError) as error:
                name, problem = parameter.placement.record.name, f"{type(error).__name__}: {error}"
                raise refusal(name, f"where its master lies can't be read ({problem})") from error
        check_held(found.values(), optimizer, base)
        return found

    shards = together(located, "the shards could not be found")
    runs = {name: (shard.start, shard.count) for name, shard in shards.items()}
    everywhere = [runs]
    if axis.size > 1:
        everywhere = [{}] * axis.size
        dist.all_gather_object(everywhere, runs, group=axis.group)
    replicas = stepped_buffers(optimizer) is None
    sizes = {name: numel(shard) for name, shard in shards.items()}
    together(lambda: check_runs(sizes, everywhere, replicas), "the shards do not add up")
    return shards


def check_held(shards: Iterable[Shard], optimizer, base: torch.optim.Optimizer) -> None:
    """Every run of this rank lies in an fp32 buffer that `base` steps, and shares none of it with another parameter."""
    stepped = stepped_by(base, optimizer)
    ends: dict[int, list[tuple[int, int, str]]] = {}
    for shard in (s for s in shards if s.count):
        if shard.buffer.dtype != torch.float32:
            raise refusal(shard.name, f"its master is {str(shard.buffer.dtype).removeprefix('torch.')}, not float32")
        if id(shard.buffer) not in stepped:
            raise refusal(shard.name, "the base optimiser does not step its master")
        if not 0 <= shard.offset <= shard.buffer.numel() - shard.count:
            raise refusal(shard.name, f"its master ends at {shard.offset + shard.count} of a buffer of {shard.buffer.numel()}")
        ends.setdefault(id(shard.buffer), []).append((shard.offset, shard.offset + shard.count, shard.name))
    for runs in ends.values():
        runs.sort()
        for (_, end, before), (start, _, name) in pairwise(runs):
            if start < end:
                raise refusal(name, f"its master shares numbers with that of {before}")


def check_runs(sizes: dict[str, int], everywhere: list[dict[str, Run]], replicas: bool) -> None:
    """The ranks' runs cover each parameter exactly once, or each rank's does where they hold `replicas`."""
    for name, size in sizes.items():
        runs = sorted(held[name] for held in everywhere if held[name][1])
        wanted = [(0, size)] * len(everywhere) if replicas else end_to_end(runs, size)
        if runs != wanted:
            raise refusal(name, f"its {size} numbers are held as {runs or 'nothing'} (start, count)")


def end_to_end(runs: list[Run], size: int) -> list[Run] | None:
    """The runs, if they are 0 .. `size` laid end to end."""
    at = 0
    for start, count in runs:
        if start != at:
            return None
        at += count
    return runs if at == size else None


def stepped_by(base: torch.optim.Optimizer, optimizer) -> set[int]:
    """The ids of all buffers that the base optimiser steps; ZeRO-3 lends it each partition for the time of its step only."""
    stepped = {id(p) for group in base.param_groups for p in group["params"]}
    if hasattr(optimizer, "sub_group_to_group_id") and optimizer.optimizer is base:
        stepped |= {id(optimizer.fp32_partitioned_groups_flat[number]) for number in optimizer.sub_group_to_group_id}
    return stepped


def numel(shard: Shard) -> int:
    """Numbers of the whole parameter on this tensor rank."""
    return int(torch.Size(shard.placement.local).numel())


def refusal(name: str, what: str) -> ConfigError:
    """The one line."""
    return ConfigError(
        f"parameter {name}: {what}; DeepSpeed {deepspeed.__version__} is not one of those this was tried with ({TRIED}), or was changed: "
        f"pip install deepspeed=={TRIED}"
    )
