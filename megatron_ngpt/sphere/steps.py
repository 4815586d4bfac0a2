"""An nGPT block's step along the residual stream, from a part's output to the next hidden state, for training.

Backward reads h as the products read it, in their dtype, so that no fp32 hidden state is kept, and makes every normalised vector again from
its inverse norm. Forward and backward go over some positions at a time (`row_parts`). D hidden.
"""

import torch

from megatron_ngpt.parallel.row_parts import row_parts
from megatron_ngpt.sphere.geometry import COSINE_LIMIT, along_arc, cosine_of_arc, inverse_norm, lerp_step, slerp_step, unit


def lerp_towards(h: torch.Tensor, output: torch.Tensor, rates: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Norm(h + rates ∘ (Norm(output) − h)), in the dtype of h.

    Args:
        h: on the sphere, [..., D].
        output: what a part of a block put out, [..., D].
        rates: fp32 [D].
        seen: h as that part's products read it, which is kept for backward in its place.
    """
    if torch.is_grad_enabled():
        return _LerpTowards.apply(h, output, rates, seen.detach())
    return lerp_step(h, unit(output), rates).to(h.dtype)  # plain passes have forward derivatives


def slerp_towards(h: torch.Tensor, output: torch.Tensor, rates: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The same along great circles, of the same arguments."""
    if torch.is_grad_enabled():
        return _SlerpTowards.apply(h, output, rates, seen.detach())
    return slerp_step(h, unit(output), rates).to(h.dtype)


class _LerpTowards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: torch.Tensor, output: torch.Tensor, rates: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        moved_h = torch.empty_like(h)
        inverses, inverses_y = (h.new_empty((*h.shape[:-1], 1), dtype=torch.float32) for _ in range(2))
        for moved, inverse, inverse_y, h_, out in row_parts(moved_h, inverses, inverses_y, h, output, axis=-2):
            out = out.float()
            inverse.copy_(inverse_norm(out))
            y = torch.lerp(h_.float(), out * inverse, rates)
            inverse_y.copy_(inverse_norm(y))
            moved.copy_(y.mul_(inverse_y))
        ctx.save_for_backward(seen, output, rates, inverses, inverses_y)
        return moved_h

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        seen, output, rates, *inverses = ctx.saved_tensors
        by_h, by_output, by_rates = torch.empty_like(grad), torch.empty_like(output), torch.zeros_like(rates)
        for by_h_, by_out, g, h, out, inverse, inverse_y in row_parts(by_h, by_output, grad, seen, output, *inverses, axis=-2):
            h, target = h.float(), out.float() * inverse
            way = target - h
            by_y = through_norm(g.float(), torch.addcmul(h, rates, way).mul_(inverse_y), inverse_y)
            by_rates += (by_y * way).flatten(0, -2).sum(0)
            by_target = by_y * rates
            torch.sub(by_y, by_target, out=by_h_)
            by_out.copy_(through_norm(by_target, target, inverse))
        return by_h, by_output, by_rates, None


class _SlerpTowards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: torch.Tensor, output: torch.Tensor, rates: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        moved_h = torch.empty_like(h)
        of_tokens = [h.new_empty((*h.shape[:-1], 1), dtype=torch.float32) for _ in range(3)]
        for moved, inverse, inverse_y, cosine, h_, out in row_parts(moved_h, *of_tokens, h, output, axis=-2):
            inverse.copy_(inverse_norm(out))
            target, h_ = out * inverse, h_.float()
            cosine.copy_(cosine_of_arc(h_, target))
            y = along_arc(h_, target, torch.acos(cosine), rates)
            inverse_y.copy_(inverse_norm(y))
            moved.copy_(y * inverse_y)
        ctx.save_for_backward(seen, output, rates, *of_tokens)
        return moved_h

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        seen, output, rates, *of_tokens = ctx.saved_tensors
        by_h, by_output, by_rates = torch.empty_like(grad), torch.empty_like(output), torch.zeros_like(rates)
        parts = row_parts(by_h, by_output, grad, seen, output, *of_tokens, axis=-2)
        for by_h_, by_out, g, h, out, inverse, inverse_y, cosine in parts:
            target, angle = out * inverse, torch.acos(cosine)
            left, gone = (1 - rates) * angle, rates * angle
            from_h, from_target = torch.sin(left), torch.sin(gone)
            by_y = through_norm(g.float(), (from_h * h + from_target * target) * inverse_y, inverse_y)
            to_h, to_target = by_y * torch.cos(left) * h, by_y * torch.cos(gone) * target  # by each one's angle
            by_rates += (angle * (to_target - to_h)).flatten(0, -2).sum(0)
            by_angle = torch.lerp(to_h, to_target, rates).sum(-1, keepdim=True)
            by_cosine = torch.where(cosine.abs() < COSINE_LIMIT, -by_angle * torch.rsqrt(1 - cosine.square()), 0)
            by_h_.copy_(from_h * by_y + by_cosine * target)
            by_out.copy_(through_norm(from_target * by_y + by_cosine * h, target, inverse))
        return by_h, by_output, by_rates, None


def through_norm(grad: torch.Tensor, unit_vector: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient by x from that by Norm(x), which lies along the sphere; `inverse` 1 / ‖x‖."""
    along = (grad * unit_vector).sum(-1, keepdim=True)
    return torch.addcmul(grad, unit_vector, along, value=-1).mul_(inverse)
