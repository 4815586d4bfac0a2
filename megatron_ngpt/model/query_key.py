"""Queries and keys on the sphere, for training: rotated, normalised and scaled.

Backward keeps their inverse norms and, beside what attention keeps of them anyway, scaled ones as they were before.
Forward and backward go over some positions at a time (`row_parts`). Shapes: B batch, T sequence, H heads, K head size.
"""

import torch

from megatron_ngpt.model.rotary import of_samples, rotate
from megatron_ngpt.model.scales import scaled
from megatron_ngpt.parallel.row_parts import row_parts
from megatron_ngpt.sphere.geometry import inverse_norm
from megatron_ngpt.sphere.steps import through_norm


def to_sphere(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale_HK: torch.Tensor | None) -> torch.Tensor:
    """scale ∘ Norm(rope(x)) in the dtype of x; cos, sin: [T, K] or [B, T, K]; `scale` fp32, None: 1."""
    if torch.is_grad_enabled():
        return _ToSphere.apply(x_BTHK, cos, sin, scale_HK)
    return scaled(rotate(x_BTHK, cos, sin) * inverse_norm(x_BTHK), scale_HK).to(x_BTHK.dtype)  # has a forward derivative


class _ToSphere(torch.autograd.Function):
    """A rotation keeps lengths: forward takes the norm of the rotated vectors, in the same pass. Unscaled results, which attention keeps
    anyway, are what backward reads; scaled ones could not be undone where the scale is 0, so what went in is kept beside them. Backward
    normalises that first: the other order the compiler would take for forward's, and keep that product."""

    @staticmethod
    def forward(ctx, x_BTHK, cos, sin, scale_HK) -> torch.Tensor:
        out_BTHK, inverses = x_BTHK.new_empty(x_BTHK.shape), x_BTHK.new_empty((*x_BTHK.shape[:-1], 1), dtype=torch.float32)
        for out, inverse, x, cos_, sin_ in row_parts(out_BTHK, inverses, x_BTHK, *of_samples(cos, sin), axis=1):
            turned = rotate(x, cos_, sin_)
            inverse.copy_(inverse_norm(turned))
            out.copy_(scaled(turned.mul_(inverse), scale_HK))
        ctx.save_for_backward(out_BTHK if scale_HK is None else x_BTHK, inverses, cos, sin, scale_HK)
        return out_BTHK

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        kept_BTHK, inverses, cos, sin, scale_HK = ctx.saved_tensors
        by_x_BTHK, by_scale = kept_BTHK.new_empty(kept_BTHK.shape), None if scale_HK is None else torch.zeros_like(scale_HK)
        for by_x, kept, inverse, g, cos_, sin_ in row_parts(by_x_BTHK, kept_BTHK, inverses, grad, *of_samples(cos, sin), axis=1):
            g = g.float()
            unit_ = rotate(kept, cos_, -sin_) if scale_HK is None else kept.float() * inverse
            if by_scale is not None:
                by_scale += (rotate(unit_, cos_, sin_) * g).sum((0, 1))
            by_x.copy_(through_norm(rotate(scaled(g, scale_HK), cos_, -sin_), unit_, inverse))
        return by_x_BTHK, None, None, by_scale
