"""Many small quantities as runs of one vector, to which each rank adds its share, so that one reduction makes all of them whole."""

import math
from collections.abc import Mapping

import torch


class Sums:
    """One fp32 vector on `device`; `shapes` are those of the tensors that share it, by name, in the same order on every rank."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device):
        self.vector = torch.zeros(sum(math.prod(shape) for shape in shapes.values()), device=device)
        runs = self.vector.split([math.prod(shape) for shape in shapes.values()])
        self._views = {name: run.view(shape) for (name, shape), run in zip(shapes.items(), runs, strict=True)}

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name, a view: what is added to it is in the vector."""
        return self._views[name]

    def __contains__(self, name: str) -> bool:
        return name in self._views
