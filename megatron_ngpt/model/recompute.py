"""What backward computes again instead of keeping it.

Selective recomputation wraps pointwise passes between products, attention and regions, each alone: so none of those is ever repeated,
and a pass gets all it reads as arguments, as ZeRO-3 may have released the parameters when backward computes it again. Passes that keep
nothing but what products and attention keep anyway, and norms (`sphere/steps.py`, `query_key.py`, `swiglu.py`) need none of it.
"""

from collections.abc import Callable

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from megatron_ngpt.model.blueprint import Blueprint


def recomputed(function: Callable, *inputs):
    """`function` of the inputs, of which only these are kept for backward."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def selectively(blueprint: Blueprint, function: Callable, *inputs):
    """`function` of the inputs, recomputed where recomputation is selective."""
    return recomputed(function, *inputs) if blueprint.recompute == "selective" else function(*inputs)


def made_again(blueprint: Blueprint, use: Callable, function: Callable, *inputs: torch.Tensor):
    """`use` of `function` of the inputs; where recomputation is selective it keeps the inputs, and backward makes its argument again."""
    if torch.compiler.is_compiling() or blueprint.recompute != "selective" or not torch.is_grad_enabled():
        return use(selectively(blueprint, function, *inputs))
    made, kept = function(*inputs), [x.detach() for x in inputs]
    place = made.data_ptr()  # hooks that knew `made` itself would keep it

    def pack(tensor: torch.Tensor) -> torch.Tensor | None:
        return None if tensor.data_ptr() == place else tensor

    def unpack(tensor: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return function(*kept) if tensor is None else tensor

    with saved_tensors_hooks(pack, unpack):
        return use(made)
