"""The rank grid: its groups partition the world, as DeepSpeed numbers it."""

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from megatron_ngpt.parallel.grid import make_grid, rank_lists
from tests.on_ranks import on_ranks

SHAPES = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 4), (2, 3, 1), (3, 1, 2), (1, 2, 3), (2, 2, 2), (4, 3, 2)]
AXES = ("tensor", "data", "pipeline")


@pytest.mark.parametrize(("tensor", "data", "pipeline"), SHAPES)
def test_each_axis_partitions_the_world(tensor, data, pipeline):
    lists = rank_lists(tensor, data, pipeline)
    sizes = {"tensor": tensor, "data": data, "pipeline": pipeline, "model": tensor * pipeline}
    assert lists.keys() == sizes.keys()
    for axis, size in sizes.items():
        assert sorted(rank for ranks in lists[axis] for rank in ranks) == list(range(tensor * data * pipeline))
        assert {len(ranks) for ranks in lists[axis]} == {size}


@pytest.mark.parametrize(("tensor", "data", "pipeline"), SHAPES)
def test_numbered_as_deepspeed_numbers_its_pipelines(tensor, data, pipeline):
    lists = rank_lists(tensor, data, pipeline)
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    for axis, name in (("tensor", "model"), ("data", "data"), ("pipeline", "pipe")):
        if len(lists[axis][0]) > 1:
            assert sorted(lists[axis]) == sorted(theirs.get_axis_comm_lists(name))


@pytest.mark.parametrize(("tensor", "data", "pipeline"), SHAPES)
def test_two_ranks_of_different_place_never_share_all_groups(tensor, data, pipeline):
    lists = rank_lists(tensor, data, pipeline)
    places = {
        tuple(next(ranks.index(rank) for ranks in lists[axis] if rank in ranks) for axis in AXES)
        for rank in range(tensor * data * pipeline)
    }
    assert len(places) == tensor * data * pipeline


def places_and_sums(tensor, pipeline):
    grid = make_grid(tensor, pipeline)
    found = {}
    for name in (*AXES, "model", "world"):
        axis = getattr(grid, name)
        total = torch.tensor([2 ** dist.get_rank()])
        dist.all_reduce(total, group=axis.group)  # which ranks the group has, as bits
        found[name] = (axis.rank, axis.size, total.item())
    return found


def test_groups_of_a_grid_over_four_ranks():
    found = on_ranks(4, places_and_sums, 2, 2)
    assert found[0] == {"tensor": (0, 2, 0b0011), "data": (0, 1, 0b0001), "pipeline": (0, 2, 0b0101), "model": (0, 4, 0b1111),
                        "world": (0, 4, 0b1111)}
    assert found[3] == {"tensor": (1, 2, 0b1100), "data": (0, 1, 0b1000), "pipeline": (1, 2, 0b1010), "model": (3, 4, 0b1111),
                        "world": (3, 4, 0b1111)}


def refused_shape():
    with pytest.raises(ValueError, match="3 ranks do not divide by tensor 2 · pipeline 1"):
        make_grid(2, 1)


def test_a_world_that_does_not_divide_is_refused():
    on_ranks(3, refused_shape)
