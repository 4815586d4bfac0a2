"""The grid's numbers against a plain walk over its places: several orders of axes and sizes, slices along one axis and several."""

import itertools
from types import SimpleNamespace

import pytest

from megatron_ngpt.config.grid import AXES, GROUPS, REST, Grid, given_sizes, grid_of

SHAPES = [
    {"tensor": 1, "data": 1, "pipeline": 1},
    {"tensor": 2, "data": 3, "pipeline": 1},
    {"tensor": 4, "data": 3, "pipeline": 2},
    {"data": 2, "pipeline": 3, "tensor": 2},
    {"pipeline": 3, "tensor": 2, "data": 1},
    {"tensor": 2, "context": 2, "data": 3, "pipeline": 2},
    {"context": 3, "tensor": 2, "pipeline": 1, "data": 2},
]
ids = [" ".join(f"{axis}{size}" for axis, size in sizes.items()) for sizes in SHAPES]


def walk(sizes: dict[str, int]) -> list[dict[str, int]]:
    """The place of each rank in the order of their numbers: the last axis changes slowest."""
    names = list(sizes)
    return [dict(zip(names, reversed(at), strict=True)) for at in itertools.product(*(range(sizes[axis]) for axis in reversed(names)))]


@pytest.mark.parametrize("sizes", SHAPES, ids=ids)
def test_every_rank_stands_where_a_walk_finds_it(sizes):
    assert [Grid(sizes).place(rank) for rank in range(len(walk(sizes)))] == walk(sizes)


@pytest.mark.parametrize("sizes", SHAPES, ids=ids)
def test_slices_along_any_axes_are_the_ranks_that_differ_in_those_alone(sizes, monkeypatch):
    grid, places = Grid(sizes), walk(sizes)
    for count in range(1, len(sizes) + 1):
        for axes in itertools.permutations(sizes, count):
            monkeypatch.setitem(GROUPS, "these", axes)
            wanted: dict[tuple, list[int]] = {}
            for rank, place in enumerate(places):
                wanted.setdefault(tuple(at for axis, at in place.items() if axis not in axes), []).append(rank)
            assert sorted(grid.slices("these")) == sorted(wanted.values())
            assert grid.size("these") == len(grid.slices("these")[0])
            if count == 1:
                assert grid.slices(axes[0]) == grid.slices("these")


@pytest.mark.parametrize("sizes", SHAPES, ids=ids)
def test_a_ranks_number_in_its_slice(sizes, monkeypatch):
    grid = Grid(sizes)
    for axes in itertools.combinations(sizes, 2):
        monkeypatch.setitem(GROUPS, "these", axes)
        for ranks in grid.slices("these"):
            for number, rank in enumerate(ranks):
                assert grid.index("these", **grid.place(rank)) == number


def test_what_the_groups_are_for():
    """A rank's replica and its fellow replicas meet in it alone and make up the world, and readers have other rows."""
    grid = grid_of(12, {"tensor": 2, "pipeline": 3})
    for model, replicas in itertools.product(grid.slices("model"), grid.slices("replicas")):
        assert len(set(model) & set(replicas)) == 1
    assert grid.size("model") * grid.size("replicas") == grid.size("world") == 12
    assert grid.slices("world") == [list(range(12))]
    assert set(grid.axes("readers")) <= set(grid.axes("replicas"))


def test_sizes_that_are_given_and_the_rest():
    sizes = grid_of(12, {"tensor": 2}).sizes
    assert {axis: size for axis, size in sizes.items() if size > 1} == {"tensor": 2, REST: 6}
    assert list(grid_of(12, {"pipeline": 3, "tensor": 2}).sizes) == list(AXES)
    with pytest.raises(ValueError, match="3 ranks do not divide by tensor 2 · pipeline 1"):
        grid_of(3, {"tensor": 2, "pipeline": 1})


def test_a_recipe_gives_every_axis_but_the_rest():
    parallel = SimpleNamespace(**{axis: number for number, axis in enumerate(AXES)})
    assert given_sizes(parallel) == {axis: number for number, axis in enumerate(AXES) if axis != REST}
