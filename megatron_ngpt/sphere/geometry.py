"""Geometry on the unit sphere along the last axis, for activations. All of it computes in fp32 whatever the dtype that comes in."""

import torch

_SMALLEST = 1e-12  # keeps Norm(0) and its gradient finite
COSINE_LIMIT = 1 - 1e-6  # beyond it θ or π − θ < 1.5e-3, where slerp's steps equal their limits to rounding


def unit(x: torch.Tensor) -> torch.Tensor:
    """Norm(x) = x / ‖x‖₂, fp32, same shape."""
    x = x.float()
    return x * inverse_norm(x)


def inverse_norm(x: torch.Tensor) -> torch.Tensor:
    """1 / ‖x‖₂ over the last axis, which is kept with size 1; fp32."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(_SMALLEST).reciprocal()


def lerp_step(h: torch.Tensor, target: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """Norm(h + rates ∘ (target − h)): one step of size `rates` [D] from h towards target, both [..., D] on the sphere (paper, eq. 10)."""
    h = h.float()
    return unit(h + rates * (target - h))


def slerp_step(h: torch.Tensor, target: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """The same rates along the great circle (paper, eq. 6 and its per-dimension form); finite for θ near 0 and π.

    The paper's division by sin θ is left to the norm.
    """
    h = h.float()
    return unit(along_arc(h, target, torch.acos(cosine_of_arc(h, target)), rates))


def along_arc(h: torch.Tensor, target: torch.Tensor, angle: torch.Tensor, rates: torch.Tensor) -> torch.Tensor:
    """sin((1 − rates) θ) ∘ h + sin(rates θ) ∘ target, of no length in particular; θ [..., 1]."""
    return torch.sin((1 - rates) * angle) * h + torch.sin(rates * angle) * target


def cosine_of_arc(h: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """cos θ between points on the sphere, [..., 1], kept off ±1, where θ has no derivative."""
    return (h * target).sum(-1, keepdim=True).clamp(-COSINE_LIMIT, COSINE_LIMIT)
