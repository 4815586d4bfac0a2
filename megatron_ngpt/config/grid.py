"""The ranks as a grid of named axes: which rank stands where, and which ranks share a slice. Numbers alone; no process groups, no torch.

Nothing but this module and `parallel/grid.py`, which makes the groups, computes with ranks. A new axis is its name in `AXES`, where its
traffic wants it, and its part in `GROUPS`.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_ngpt.config.recipe import Parallel

AXES = ("tensor", "context", "data", "pipeline")  # the first one's ranks are neighbours, on one host: the axis that talks most
REST = "data"  # takes the ranks that the other axes leave
GROUPS = {  # slices along several axes, named by what their ranks are for
    "readers": ("data",),  # read other rows of the global batch
    "replicas": ("context", "data"),  # have the same parameters: losses and gradients are means over them, ZeRO divides optimiser state
    "model": ("tensor", "pipeline"),  # hold one replica of the model between them
    "world": AXES,
}


@dataclass(frozen=True)
class Grid:
    """Ranks along each axis by its name, numbered with the first axis fastest.

    Methods take the name of an axis or of a slice in `GROUPS`.
    """

    sizes: Mapping[str, int]

    def axes(self, name: str) -> list[str]:
        """The axes along which a slice lies, in order."""
        return [axis for axis in self.sizes if axis in GROUPS.get(name, (name,))]

    def size(self, name: str) -> int:
        """Ranks in a slice."""
        return math.prod(self.sizes[axis] for axis in self.axes(name))

    def place(self, rank: int) -> dict[str, int]:
        """Where a rank stands on each axis."""
        found = {}
        for axis, size in self.sizes.items():
            rank, found[axis] = divmod(rank, size)
        return found

    def slices(self, name: str) -> list[list[int]]:
        """The ranks of each slice, in order; the slices of a name share the world out among them."""
        inside = self.axes(name)
        outside = [axis for axis in self.sizes if axis not in inside]
        return [self.slice_of(name, start) for start in self._numbers(outside)]

    def slice_of(self, name: str, rank: int) -> list[int]:
        """The ranks, in order, of that slice of `name` in which `rank` is; costs no more than the slice is long."""
        inside, place = self.axes(name), self.place(rank)
        start = rank - sum(self._stride(axis) * place[axis] for axis in inside)
        return [start + step for step in self._numbers(inside)]

    def index(self, name: str, **place: int) -> int:
        """The number, within its slice, of the rank that stands at `place`, and at 0 on the axes left out."""
        inside = self.axes(name)
        return self._numbers(inside).index(sum(self._stride(axis) * at for axis, at in place.items() if axis in inside))

    def _stride(self, axis: str) -> int:
        names = list(self.sizes)
        return math.prod(self.sizes[name] for name in names[: names.index(axis)])

    def _numbers(self, axes: list[str]) -> list[int]:
        """The ranks that stand at 0 on all axes but these, the first of them fastest."""
        steps = [[self._stride(axis) * at for at in range(self.sizes[axis])] for axis in reversed(axes)]
        return [sum(step) for step in itertools.product(*steps)]


def grid_of(world: int, given: Mapping[str, int]) -> Grid:
    """The grid of `world` ranks: some axes' sizes as `given`, 1 for the others, and the rest of the ranks along `REST`.

    Raises:
        ValueError: the number of ranks is no multiple of the product of what is given.
    """
    if world % (product := math.prod(given.values())):
        raise ValueError(f"{world} ranks do not divide by {' · '.join(f'{axis} {size}' for axis, size in given.items())}")
    sizes = {axis: given.get(axis, 1) for axis in AXES}
    return Grid(sizes | {REST: world // product})


def given_sizes(parallel: Parallel) -> dict[str, int]:
    """What a recipe says of the axes."""
    return {axis: getattr(parallel, axis) for axis in AXES if axis != REST}
