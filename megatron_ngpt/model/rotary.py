"""Rotary position embedding: a rotation of pairs (i, i + K/2) of a head's entries (half-split layout, as Llama's)."""

from functools import lru_cache

import torch


@lru_cache(maxsize=8)
def rotation_table(context: int, head_size: int, base: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position's angles, fp32 [context, K] each, the second half repeating the first."""
    frequencies = base ** (-torch.arange(0, head_size, 2, device=device, dtype=torch.float64) / head_size)
    angles = torch.arange(context, device=device, dtype=torch.float64).outer(frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each head of `x` rotated by its position's angles; fp32. cos, sin: [T, K] or [B, T, K]."""
    x = x_BTHK.float()
    first, second = x.chunk(2, -1)
    return x * cos.unsqueeze(-2) + torch.cat((-second, first), -1) * sin.unsqueeze(-2)


def document_positions(documents_BT: torch.Tensor) -> torch.Tensor:
    """Each token's position in its own document's part of the window, int64 [B, T]."""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    starts = torch.ones_like(documents_BT, dtype=torch.bool)
    starts[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values
