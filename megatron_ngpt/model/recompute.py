"""What backward computes again instead of keeping it.

Selective recomputation wraps the pointwise passes between products, attention and regions, each alone: so none of those is ever repeated,
and a pass gets all it reads as arguments, as ZeRO-3 may have released the parameters when backward computes it again.
"""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from megatron_ngpt.model.blueprint import Blueprint


def recomputed(function: Callable, *inputs):
    """`function` of the inputs, of which only these are kept for backward."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def selectively(blueprint: Blueprint, function: Callable, *inputs):
    """`function` of the inputs, recomputed where recomputation is selective."""
    if blueprint.recompute == "selective" and torch.is_grad_enabled():
        return recomputed(function, *inputs)
    return function(*inputs)
