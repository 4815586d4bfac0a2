"""The learned scales: effective = stored · (init value / init scale); stored starts at the init scale (paper, section 2.5)."""

import torch
from torch import nn

from megatron_ngpt.config.recipe import scale_start
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter, place


def scale_parameter(
    blueprint: Blueprint, name: str, shape: tuple[int, ...], dim: int | None = None, padded: int | None = None
) -> nn.Parameter:
    """The stored scale `name` of a global `shape`, divided over tensor ranks along `dim` (None: a replica on each)."""
    axis: Axis = blueprint.grid.tensor
    made = parameter(place(shape, axis, dim, padded), axis)
    effective, stored = scale_start(blueprint.model, name)
    made.initial = ("constant", stored)
    made.effective_factor = effective / stored
    return made


def effective(stored: nn.Parameter) -> torch.Tensor:
    """The scale that acts, fp32, same shape."""
    return stored.float() * stored.effective_factor
