"""An nGPT block's step along the residual stream, from a part's output to the next hidden state, for training.

Backward reads h as the products read it, in their dtype, so that no fp32 hidden state is kept, and makes every normalised vector again from
its inverse norm. Forward and backward go over some rows at a time (`row_parts`). Shapes: N tokens, D hidden.
"""

import torch

from megatron_ngpt.parallel.row_parts import row_parts
from megatron_ngpt.sphere.geometry import inverse_norm, lerp_step, unit


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


class _LerpTowards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: torch.Tensor, output: torch.Tensor, rates: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        h_ND, output_ND = _rows(h), _rows(output)
        moved_ND, inverses_N2 = torch.empty_like(h_ND), h.new_empty((len(h_ND), 2), dtype=torch.float32)
        for moved, inverses, h_, output_ in row_parts(moved_ND, inverses_N2, h_ND, output_ND):
            inverse = inverse_norm(output_)
            y = torch.lerp(h_.float(), output_ * inverse, rates)
            inverse_y = inverse_norm(y)
            moved.copy_(y * inverse_y)
            inverses.copy_(torch.cat((inverse, inverse_y), 1))
        ctx.save_for_backward(seen, output, rates, inverses_N2)
        return moved_ND.view_as(h)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        seen, output, rates, inverses_N2 = ctx.saved_tensors
        grad_ND, seen_ND, output_ND = _rows(grad), _rows(seen), _rows(output)
        by_h_ND, by_output_ND, by_rates = torch.empty_like(grad_ND), torch.empty_like(output_ND), torch.zeros_like(rates)
        for by_h, by_output, g, h, out, inverses in row_parts(by_h_ND, by_output_ND, grad_ND, seen_ND, output_ND, inverses_N2):
            inverse, inverse_y = inverses.split(1, 1)
            target = out * inverse
            way = target - h
            by_y = through_norm(g.float(), (h + rates * way) * inverse_y, inverse_y)
            by_rates += (by_y * way).sum(0)
            by_target = by_y * rates
            by_h.copy_(by_y - by_target)
            by_output.copy_(through_norm(by_target, target, inverse))
        return by_h_ND.view_as(grad), by_output_ND.view_as(output), by_rates, None


def through_norm(grad: torch.Tensor, unit_vector: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient by x from that by Norm(x), which lies along the sphere; `inverse` 1 / ‖x‖."""
    along = (grad * unit_vector).sum(-1, keepdim=True)
    return torch.addcmul(grad, unit_vector, along, value=-1) * inverse


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])
