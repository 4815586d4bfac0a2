"""The learned scales as they act: effective = stored · (init value / init scale) (paper, section 2.5)."""

import torch
from torch import nn


def effective(stored: nn.Parameter) -> torch.Tensor:
    """The scale that acts, fp32, same shape."""
    record = stored.placement.record
    scale = stored.float() * record.factor
    return scale.abs() if record.absolute else scale


def scaled(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """scale ∘ x; x itself where there is no scale."""
    return x if scale is None else x * scale
