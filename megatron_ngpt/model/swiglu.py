"""u ∘ silu(g), of which backward keeps u and g alone, some rows at a time (`row_parts`). Shapes: F width of the feed-forward here."""

import torch
import torch.nn.functional as F

from megatron_ngpt.parallel.row_parts import row_parts


def swiglu(u_BTF: torch.Tensor, g_BTF: torch.Tensor) -> torch.Tensor:
    """u ∘ silu(g), in their dtype."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(u_BTF, g_BTF)
    return u_BTF * F.silu(g_BTF)  # has a forward derivative


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u_BTF: torch.Tensor, g_BTF: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(u_BTF, g_BTF)
        out_NF = torch.empty_like(u_BTF).flatten(0, -2)
        for out, u, g in row_parts(out_NF, u_BTF.flatten(0, -2), g_BTF.flatten(0, -2)):
            torch.mul(u, F.silu(g), out=out)
        return out_NF.view_as(u_BTF)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        u_BTF, g_BTF = ctx.saved_tensors
        by_u_NF, by_g_NF = torch.empty_like(u_BTF).flatten(0, -2), torch.empty_like(g_BTF).flatten(0, -2)
        for by_u, by_g, y, u, g in row_parts(by_u_NF, by_g_NF, *(x.flatten(0, -2) for x in (grad, u_BTF, g_BTF))):
            torch.mul(y, F.silu(g), out=by_u)
            by_g.copy_(torch.ops.aten.silu_backward(y * u, g))
        return by_u_NF.view_as(u_BTF), by_g_NF.view_as(g_BTF)
