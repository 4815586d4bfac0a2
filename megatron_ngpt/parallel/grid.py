"""The rank grid: one object of which every process group is a slice.

Ranks are numbered with the tensor axis fastest, then data, then pipeline, as DeepSpeed's `PipeModelDataParallelTopology`
numbers them: rank = (pipeline · data_size + data) · tensor_size + tensor. Neighbouring ranks share a host, so the axis that talks
most, tensor, stays inside it.
"""

from dataclasses import dataclass, field

import torch.distributed as dist


@dataclass(frozen=True)
class Axis:
    """One axis of the grid as this rank sees it."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RankGrid:
    """Where this rank stands on each axis; without a process group, a grid of one rank."""

    tensor: Axis = Axis()
    data: Axis = Axis()
    pipeline: Axis = Axis()
    model: Axis = Axis()  # tensor and pipeline together: the ranks that hold one replica of the model
    world: Axis = Axis()


def rank_lists(tensor: int, data: int, pipeline: int) -> dict[str, list[list[int]]]:
    """The ranks of every group, by axis; the lists of an axis partition the world."""

    def number(p: int, d: int, t: int) -> int:
        return (p * data + d) * tensor + t

    return {
        "tensor": [[number(p, d, t) for t in range(tensor)] for p in range(pipeline) for d in range(data)],
        "data": [[number(p, d, t) for d in range(data)] for p in range(pipeline) for t in range(tensor)],
        "pipeline": [[number(p, d, t) for p in range(pipeline)] for d in range(data) for t in range(tensor)],
        "model": [[number(p, d, t) for p in range(pipeline) for t in range(tensor)] for d in range(data)],
    }


def make_grid(tensor: int = 1, pipeline: int = 1) -> RankGrid:
    """The grid over the initialised process group (collective: every rank calls it with the same sizes).

    Raises:
        ValueError: the world size is not a multiple of tensor · pipeline.
    """
    world, me = dist.get_world_size(), dist.get_rank()
    if world % (tensor * pipeline):
        raise ValueError(f"{world} ranks do not divide by tensor {tensor} · pipeline {pipeline}")
    axes = {}
    for name, lists in rank_lists(tensor, world // (tensor * pipeline), pipeline).items():
        for ranks in lists:
            group = dist.new_group(ranks)  # every rank takes part in the creation of every group
            if me in ranks:
                axes[name] = Axis(ranks.index(me), len(ranks), group)
    return RankGrid(world=Axis(me, world, dist.group.WORLD), **axes)
