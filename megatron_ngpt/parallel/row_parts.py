"""Passes over large tensors some rows at a time, so that what they make in between is small, and on a CPU stays in its cache."""

from collections.abc import Iterable

import torch

_CPU_NUMBERS, _DEVICE_NUMBERS = 1 << 19, 1 << 26  # two MiB in fp32: fewer, and calls cost; more, and caches are missed


def row_parts(*tensors: torch.Tensor, axis: int = 0) -> Iterable[tuple[torch.Tensor, ...]]:
    """Views of as many rows of the tensors, which lie along `axis` side by side, as the first one's numbers allow; all of them for the
    compiler, which fuses the passes."""
    if torch.compiler.is_compiling():
        return [tensors]
    first = tensors[0]
    numbers = _CPU_NUMBERS if first.device.type == "cpu" else _DEVICE_NUMBERS
    rows = max(1, numbers // max(1, first.narrow(axis, 0, min(1, first.shape[axis])).numel()))
    return zip(*(tensor.split(rows, axis) for tensor in tensors), strict=True)
