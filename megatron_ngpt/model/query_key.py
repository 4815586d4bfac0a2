"""Queries and keys on the sphere, for training: rotated, normalised and scaled, of which backward keeps what went in alone.

Forward and backward go over some rows at a time (`row_parts`). Shapes: B batch, T sequence, H heads, K head size.
"""

import torch

from megatron_ngpt.model.rotary import rotate
from megatron_ngpt.parallel.row_parts import row_parts
from megatron_ngpt.sphere.geometry import inverse_norm
from megatron_ngpt.sphere.steps import through_norm


def to_sphere(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale_HK: torch.Tensor | None) -> torch.Tensor:
    """scale ∘ Norm(rope(x)) in the dtype of x; cos, sin: [T, K] or [B, T, K]; `scale` fp32, None: 1."""
    if torch.is_grad_enabled():
        return _ToSphere.apply(x_BTHK, cos, sin, scale_HK)
    return _scaled(rotate(x_BTHK, cos, sin) * inverse_norm(x_BTHK), scale_HK).to(x_BTHK.dtype)  # has a forward derivative


class _ToSphere(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BTHK, cos, sin, scale_HK) -> torch.Tensor:
        ctx.save_for_backward(x_BTHK, cos, sin, scale_HK)
        out_BTHK = x_BTHK.new_empty(x_BTHK.shape)
        for out, x, cos_, sin_ in row_parts(*_by_position(out_BTHK, x_BTHK, cos, sin)):
            out.copy_(_scaled(rotate(x, cos_, sin_) * inverse_norm(x), scale_HK))
        return out_BTHK

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x_BTHK, cos, sin, scale_HK = ctx.saved_tensors
        by_x_BTHK, by_scale = x_BTHK.new_empty(x_BTHK.shape), None if scale_HK is None else torch.zeros_like(scale_HK)
        for by_x, x, g, cos_, sin_ in row_parts(*_by_position(by_x_BTHK, x_BTHK, grad, cos, sin)):
            inverse = inverse_norm(x)
            unit_ = x * inverse
            if by_scale is not None:
                by_scale += (rotate(unit_, cos_, sin_) * g).sum((0, 1))
            by_unit = rotate(_scaled(g, scale_HK), cos_, -sin_)
            by_x.copy_(through_norm(by_unit, unit_, inverse))
        return by_x_BTHK, None, None, by_scale


def _scaled(x: torch.Tensor, scale_HK: torch.Tensor | None) -> torch.Tensor:
    return x if scale_HK is None else x * scale_HK


def _by_position(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """With positions first, [T, B, ...]; what all samples share, [T, K], as [T, 1, K]."""
    return [tensor.unsqueeze(1) if tensor.ndim == 2 else tensor.transpose(0, 1) for tensor in tensors]
