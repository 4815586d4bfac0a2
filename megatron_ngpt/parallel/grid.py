"""The rank grid as this rank sees it: one object of which every process group is a slice. `config/grid.py` says which ranks have which."""

from dataclasses import dataclass, field

import torch.distributed as dist

from megatron_ngpt.config.grid import AXES, GROUPS, Grid, grid_of


@dataclass(frozen=True)
class Axis:
    """A slice of the grid, along one axis or several, as this rank sees it."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Of the group, the same in every process that starts alike; without a group none."""
        return "" if self.group is None else self.group.group_name

    @property
    def first(self) -> bool:
        """This rank is the slice's first."""
        return self.rank == 0

    @property
    def last(self) -> bool:
        """This rank is the slice's last."""
        return self.rank == self.size - 1

    @property
    def before(self) -> int:
        """The number in the slice of the rank before this one."""
        return self.rank - 1

    @property
    def after(self) -> int:
        """The number in the slice of the rank after this one."""
        return self.rank + 1

    def share(self, total: int) -> slice:
        """This rank's run of `total` things, all runs of one length but for what the last ones lack."""
        each = -(-total // self.size)
        start = self.start(each)
        return slice(min(total, start), min(total, start + each))

    def start(self, each: int) -> int:
        """Where this rank's things start, if every rank has `each`."""
        return self.rank * each

    def turns(self, total: int) -> range:
        """The numbers of this rank's things, of `total` that the slice's ranks take in turn."""
        return range(self.rank, total, self.size)


ALONE = Axis()


@dataclass(frozen=True)
class RankGrid:
    """Where this rank stands on each axis and in each group of `config.grid.GROUPS`; without a process group, a grid of one rank."""

    shape: Grid = field(default_factory=lambda: grid_of(1, {}))
    tensor: Axis = ALONE
    context: Axis = ALONE
    data: Axis = ALONE
    pipeline: Axis = ALONE
    readers: Axis = ALONE
    replicas: Axis = ALONE
    model: Axis = ALONE
    world: Axis = ALONE


def make_grid(**sizes: int) -> RankGrid:
    """The grid over the initialised process group (collective: every rank calls it with the same sizes of axes, see `grid_of`).

    Raises:
        ValueError: the world size is not a multiple of their product.
    """
    shape, me = grid_of(dist.get_world_size(), sizes), dist.get_rank()
    made = {tuple(range(dist.get_world_size())): dist.group.WORLD}  # slices that have the same ranks share a group
    seen = {}
    for name in (*AXES, *GROUPS):
        ranks = tuple(shape.slice_of(name, me))
        if ranks not in made:
            # Its ranks alone meet: else every rank would wait for the making of every group, ranks × groups entries in one store.
            made[ranks] = dist.new_group(ranks, use_local_synchronization=True)
        seen[name] = Axis(ranks.index(me), len(ranks), made[ranks])
    return RankGrid(shape, **seen)
