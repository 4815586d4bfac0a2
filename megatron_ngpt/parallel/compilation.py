"""Functions compiled when they are first called."""

from collections.abc import Callable
from functools import cache

import torch


def when_called(function: Callable, **options) -> Callable:
    """`function`, compiled (`torch.compile` with the `options`) as it is first called, and not before: a run that compiles nothing has no
    compiler to load, and a compiler that is loaded within DeepSpeed's `zero.Init` takes what stands there for torch's functions, and
    breaks the graph at each of torch's own."""

    @cache
    def compiled() -> Callable:
        return torch.compile(function, **options)

    return lambda *inputs, **named: compiled()(*inputs, **named)
