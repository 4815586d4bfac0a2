"""The rank grid: its groups have the ranks that its numbers say, as DeepSpeed numbers them."""

import itertools

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from megatron_ngpt.config.grid import AXES, GROUPS, grid_of
from megatron_ngpt.parallel.grid import Axis, make_grid
from tests.on_ranks import on_ranks

SHAPES = [(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 1, 4), (2, 3, 1), (3, 1, 2), (1, 2, 3), (2, 2, 2), (4, 3, 2)]


@pytest.mark.parametrize(("tensor", "data", "pipeline"), SHAPES)
def test_numbered_as_deepspeed_numbers_its_pipelines(tensor, data, pipeline):
    grid = grid_of(tensor * data * pipeline, {"tensor": tensor, "pipeline": pipeline})
    theirs = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)
    for axis, name in (("tensor", "model"), ("data", "data"), ("pipeline", "pipe")):
        if grid.size(axis) > 1:
            assert sorted(grid.slices(axis)) == sorted(theirs.get_axis_comm_lists(name))


def places_and_sums(sizes):
    grid = make_grid(**sizes)
    found = {}
    for name in (*AXES, *GROUPS):
        axis = getattr(grid, name)
        total = torch.tensor([2 ** dist.get_rank()])
        dist.all_reduce(total, group=axis.group)  # which ranks the group has, as bits
        found[name] = (axis.rank, axis.size, total.item())
    return found


@pytest.mark.parametrize("sizes", [{"tensor": 2, "pipeline": 2}, {"tensor": 2}, {"pipeline": 4}, {}], ids=str)
def test_groups_of_a_grid_over_four_ranks(sizes):
    grid = grid_of(4, sizes)
    for rank, found in enumerate(on_ranks(4, places_and_sums, sizes)):
        for name, seen in found.items():
            ranks = next(ranks for ranks in grid.slices(name) if rank in ranks)
            assert seen == (ranks.index(rank), len(ranks), sum(2**r for r in ranks)), (rank, name)


@pytest.mark.parametrize(("total", "size"), [(12, 3), (7, 3), (2, 4), (0, 2), (5, 1)])
def test_shares_and_turns_deal_everything_out_once(total, size):
    things = list(range(total))
    shares = [things[Axis(rank, size).share(total)] for rank in range(size)]
    assert list(itertools.chain(*shares)) == things
    assert all(len(share) == total // size for share in shares) or total % size
    assert sorted(number for rank in range(size) for number in Axis(rank, size).turns(total)) == things


def groups_made():
    made, original = [], dist.new_group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "new_group", lambda ranks, **options: (made.append(ranks), original(ranks, **options))[1])
        make_grid(tensor=2, pipeline=2)
    return made


def test_a_rank_makes_the_groups_that_it_is_in_and_no_others():
    """Each only once; the world is there already."""
    for rank, made in enumerate(on_ranks(8, groups_made)):
        assert all(rank in ranks for ranks in made)
        assert len(made) == len(set(made)) <= len(GROUPS) + len(AXES) - 1


def check_three_ranks_are_refused():
    with pytest.raises(ValueError, match="3 ranks do not divide by tensor 2"):
        make_grid(tensor=2)


def test_a_world_that_does_not_divide_is_refused():
    on_ranks(3, check_three_ranks_are_refused)
