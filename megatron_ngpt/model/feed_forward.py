"""SwiGLU feed-forward over the tensor ranks, its width divided among them."""

import math

import torch
from torch import nn

from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.recompute import made_again, recomputed
from megatron_ngpt.model.scales import effective
from megatron_ngpt.model.swiglu import swiglu
from megatron_ngpt.parallel.linear import ColumnParallelLinear, RowParallelLinear, enter_region, leave_region
from megatron_ngpt.parallel.placement import parameter


class FeedForward(nn.Module):
    """W_d (u ∘ silu(g)) with u = W_u h and g = W_g h, as in Llama; the baseline's feed-forward."""

    def __init__(self, blueprint: Blueprint, name: str):
        super().__init__()
        record, axis = blueprint.parameters, blueprint.grid.tensor
        self.blueprint, self.chunks = blueprint, blueprint.ffn_chunks
        self.axis, self.sequence = axis, blueprint.sequence
        self.up_proj = ColumnParallelLinear(record[f"{name}.up_proj.weight"], axis)
        self.gate_proj = ColumnParallelLinear(record[f"{name}.gate_proj.weight"], axis)
        self.down_proj = RowParallelLinear(record[f"{name}.down_proj.weight"], axis)

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """The feed-forward's output [B, T, D]."""
        x_BTD = enter_region(h_BTD.to(self.up_proj.weight.dtype), self.axis, self.sequence)
        up_scale, gate_scale = self.scales()
        if self.chunks == 1:
            y_BTD = self._hidden(x_BTD, up_scale, gate_scale)
        else:
            y_BTD = torch.cat([recomputed(self._hidden, x, up_scale, gate_scale) for x in x_BTD.chunk(self.chunks, 1)], 1)
        return leave_region(y_BTD, self.axis, self.sequence)

    def _hidden(self, x_BTD: torch.Tensor, up_scale: torch.Tensor | None, gate_scale: torch.Tensor | None) -> torch.Tensor:
        later = torch.compiler.is_compiling() and up_scale is not None  # in a pass over u and g that compiled code makes anyway
        u_BTF, g_BTF = self.up_proj(x_BTD, up_scale, later), self.gate_proj(x_BTD, gate_scale, later)
        scales = (up_scale.detach(), gate_scale.detach()) if later else ()
        return made_again(self.blueprint, self.down_proj, swiglu, u_BTF, g_BTF, *scales)

    def scales(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """What u and g are multiplied by, [F] each."""
        return None, None


class NormalizedFeedForward(FeedForward):
    """nGPT: u scaled by s_u, g by s_g √D; α says how far the block moves."""

    def __init__(self, blueprint: Blueprint, name: str):
        super().__init__(blueprint, name)
        record = blueprint.parameters
        self.up_scale = parameter(record[f"{name}.up_scale"], self.axis)
        self.gate_scale = parameter(record[f"{name}.gate_scale"], self.axis)
        self.alpha = parameter(record[f"{name}.alpha"], self.axis)
        self.gate_factor = math.sqrt(blueprint.model.hidden)

    def scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """s_u and s_g √D, fp32."""
        return effective(self.up_scale), effective(self.gate_scale) * self.gate_factor
