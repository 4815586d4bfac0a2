"""u ∘ silu(g), of which backward keeps u and g alone, some rows at a time (`row_parts`). Shapes: F width of the feed-forward here."""

import torch
import torch.nn.functional as F

from megatron_ngpt.model.scales import scaled
from megatron_ngpt.parallel.row_parts import row_parts


def swiglu(
    u_BTF: torch.Tensor, g_BTF: torch.Tensor, up_scale: torch.Tensor | None = None, gate_scale: torch.Tensor | None = None
) -> torch.Tensor:
    """(up_scale ∘ u) ∘ silu(gate_scale ∘ g), in the dtype of u; the scales fp32 [F], constants here, or both None: 1."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(u_BTF, g_BTF, up_scale, gate_scale)
    return (scaled(u_BTF, up_scale) * F.silu(scaled(g_BTF, gate_scale))).to(u_BTF.dtype)  # has a forward derivative


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u_BTF, g_BTF, up_scale, gate_scale) -> torch.Tensor:
        ctx.save_for_backward(u_BTF, g_BTF, up_scale, gate_scale)
        out_NF = torch.empty_like(u_BTF).flatten(0, -2)
        for out, u, g in row_parts(out_NF, u_BTF.flatten(0, -2), g_BTF.flatten(0, -2)):
            torch.mul(scaled(u, up_scale), F.silu(scaled(g, gate_scale)), out=out)
        return out_NF.view_as(u_BTF)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        u_BTF, g_BTF, up_scale, gate_scale = ctx.saved_tensors
        by_u_NF, by_g_NF = torch.empty_like(u_BTF).flatten(0, -2), torch.empty_like(g_BTF).flatten(0, -2)
        for by_u, by_g, y, u, g in row_parts(by_u_NF, by_g_NF, *(x.flatten(0, -2) for x in (grad, u_BTF, g_BTF))):
            y, g = scaled(y, up_scale), scaled(g, gate_scale)
            torch.mul(y, F.silu(g), out=by_u)
            by_g.copy_(scaled(torch.ops.aten.silu_backward(y * u, g), gate_scale))
        return by_u_NF.view_as(u_BTF), by_g_NF.view_as(g_BTF), None, None
