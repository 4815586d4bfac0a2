"""Every product of activations with a weight, forward and both backward ones: the one room where another way to multiply would go.

A weight is held in one of two ways, each row a vector along the hidden axis: [O, D] turns D inputs into O outputs, `transposed` [I, D]
turns I inputs into D outputs. A scale of the weight's rows is folded into it: (scale ∘ W) x = scale ∘ (W x) for [O, D]. That replaces a
pass over [tokens, O] by one over [O, D]; the scale's gradient is a row sum over the weight's gradient instead of a reduction over all
tokens. The folded weight is recomputed in backward, not saved. Where a compiled pass over the outputs follows anyway, that multiplies
by the scale, and no pass folds it (`product_scaled_later`). Passes over a weight go some rows at a time: with whole temporaries in fp32
they took five times as long.

Shapes: x [..., inputs], products [..., outputs], in the weight's dtype; scales fp32. Nothing here is collective.
"""

import torch
import torch.nn.functional as F

from megatron_ngpt.parallel.row_parts import row_parts


def product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None, transposed: bool = False) -> torch.Tensor:
    """x times the weight, whose rows are scaled by `scale` [rows]."""
    x = x.to(weight.dtype)
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, scale, transposed)
    if scale is not None and not transposed and x.numel() < x.shape[-1] ** 2:  # fewer tokens than inputs: the outputs are fewer numbers
        return (outputs(x, weight, transposed) * scale).to(weight.dtype)
    return outputs(x, fold(weight, scale), transposed)


class _Product(torch.autograd.Function):
    """The three products of one weight in a training step."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, transposed: bool) -> torch.Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.transposed = transposed
        return outputs(x, fold(weight, scale), transposed)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight, scale = ctx.saved_tensors
        grad_x = input_gradient(grad, fold_again(weight, scale), ctx.transposed)
        grad_weight, grad_scale = unfold_gradient(weight_gradient(grad, x, ctx.transposed), weight, scale)
        return grad_x, grad_weight, grad_scale, None


def product_scaled_later(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x Wᵀ, which another pass multiplies by `scale` [O] as by a constant: the scale's gradient comes with the weight's [O, D].

    The loss depends on scale ∘ W alone, so in every row scale · ∂scale = W · ∂W: a pass that reads W and its gradient, and writes neither.
    """
    x = x.to(weight.dtype)
    return _ProductScaledLater.apply(x, weight, scale) if torch.is_grad_enabled() else outputs(x, weight, False)


class _ProductScaledLater(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight, scale)
        return outputs(x, weight, False)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        x, weight, scale = ctx.saved_tensors
        grad_weight, along = weight_gradient(grad, x, False), torch.empty_like(scale)
        for part, rows, sums in row_parts(grad_weight, weight, along):
            torch.sum(_own(rows).mul_(part.float()), 1, out=sums)
        return input_gradient(grad, weight, False), grad_weight, along / scale.where(scale != 0, 1)


def outputs(x: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """[..., inputs] to [..., outputs]."""
    return x @ weight if transposed else F.linear(x, weight)


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The gradient by x, from the one by the outputs."""
    return F.linear(grad, weight) if transposed else grad @ weight


def weight_gradient(grad: torch.Tensor, x: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The gradient by the weight as it was multiplied, summed over all tokens."""
    rows, columns = (x, grad) if transposed else (grad, x)
    return rows.flatten(0, -2).t() @ columns.flatten(0, -2)


def fold(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The weight with its rows scaled, in its dtype."""
    if scale is None:
        return weight
    folded = torch.empty_like(weight)
    for part, rows, factors in row_parts(folded, weight, scale):
        part.copy_(_own(rows).mul_(factors.unsqueeze(1)))
    return folded


def fold_again(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The same in backward. With the factors in the other order the compiler sees another product, and does not keep forward's instead."""
    if scale is None or not torch.compiler.is_compiling():
        return fold(weight, scale)
    return (scale.unsqueeze(1) * weight).to(weight.dtype)


def unfold_gradient(
    grad_folded: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of the weight, in its dtype, and of the scale, fp32, from that of the folded weight, which they may overwrite."""
    if scale is None:
        return grad_folded.to(weight.dtype), None
    grad_weight = grad_folded if grad_folded.dtype == weight.dtype else torch.empty_like(weight)
    grad_scale = torch.empty_like(scale, dtype=torch.float32)
    for to_weight, to_scale, grad, rows, factors in row_parts(grad_weight, grad_scale, grad_folded, weight, scale):
        grad = _own(grad)
        torch.sum(_own(rows).mul_(grad), 1, out=to_scale)
        to_weight.copy_(grad.mul_(factors.unsqueeze(1)))
    return grad_weight, grad_scale


def _own(x: torch.Tensor) -> torch.Tensor:
    """A copy in fp32, or wider, that may be written over. On a CPU an operation on two dtypes takes twice as long as on one, and one
    in place half."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
