"""Grouped-query causal attention over the tensor ranks, heads divided among them. The two kinds differ in what is done to q and k."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.query_key import to_sphere
from megatron_ngpt.model.rotary import score_factor, turn
from megatron_ngpt.model.scales import effective
from megatron_ngpt.model.window import Window
from megatron_ngpt.parallel.document_attention import document_attention
from megatron_ngpt.parallel.linear import ColumnParallelLinear, RowParallelLinear, enter_region, leave_region
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.ring import attention_in_blocks
from megatron_ngpt.parallel.ulysses import attention_by_heads


class Past(Protocol):
    """Keys and values of the tokens before these, which inference keeps."""

    def attend(self, q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, scale: float) -> torch.Tensor:
        """Keep k and v, and let q see them and all that was kept before: [B, T, H, K]."""


class Attention(nn.Module):
    """softmax(K^-½ rope(q) rope(k)ᵀ) v, as in Llama; the baseline's attention."""

    def __init__(self, blueprint: Blueprint, name: str):
        super().__init__()
        model, axis = blueprint.model, blueprint.grid.tensor
        record = blueprint.parameters
        self.blueprint = blueprint
        self.axis, self.sequence, self.context = axis, blueprint.sequence, blueprint.grid.context
        self.ring = self.context.size > 1 and blueprint.context_kind == "ring"
        self.heads, self.groups, self.head_size = model.heads // axis.size, model.groups // axis.size, model.head_size
        self.q_proj = ColumnParallelLinear(record[f"{name}.q_proj.weight"], axis)
        self.k_proj = ColumnParallelLinear(record[f"{name}.k_proj.weight"], axis)
        self.v_proj = ColumnParallelLinear(record[f"{name}.v_proj.weight"], axis)
        self.o_proj = RowParallelLinear(record[f"{name}.o_proj.weight"], axis)
        self.softmax_scale = score_factor(model.rope_scaling) * model.head_size**-0.5

    def forward(self, h_BTD: torch.Tensor, window: Window, past: Past | None = None) -> torch.Tensor:
        """The attention's output [B, T, D]. With a `past` the tokens follow those that it keeps."""
        x_BTD = enter_region(h_BTD.to(self.q_proj.weight.dtype), self.axis, self.sequence)
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (self.heads, self.head_size))
        k_BTGK = self.k_proj(x_BTD).unflatten(-1, (self.groups, self.head_size))
        v_BTGK = self.v_proj(x_BTD).unflatten(-1, (self.groups, self.head_size))
        q_BTHK, k_BTGK = self.position(q_BTHK, k_BTGK, window.cos, window.sin)
        if past is None:
            a_BTHK = self.attend(q_BTHK, k_BTGK, v_BTGK, window)
        else:
            a_BTHK = past.attend(q_BTHK, k_BTGK, v_BTGK, self.softmax_scale)
        return leave_region(self.o_proj(a_BTHK.flatten(-2)), self.axis, self.sequence)

    def attend(self, q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, window: Window) -> torch.Tensor:
        """Causal attention over the context ranks, within documents where the window has any, [B, T, H, K]."""
        scale, documents = self.softmax_scale, window.documents
        if self.ring and documents is None:
            return attention_in_blocks(q_BTHK, k_BTGK, v_BTGK, scale, self.context)
        if self.ring:
            return document_attention(q_BTHK, k_BTGK, v_BTGK, scale, documents, self.context)

        def whole(q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor) -> torch.Tensor:
            if documents is None:
                return causal_attention(q_BTHK, k_BTGK, v_BTGK, scale)
            return document_attention(q_BTHK, k_BTGK, v_BTGK, scale, documents)

        return attention_by_heads(q_BTHK, k_BTGK, v_BTGK, self.context, whole)

    def position(self, q_BTHK, k_BTGK, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys as the scores use them, in their own dtype."""
        return turn(q_BTHK, cos, sin), turn(k_BTGK, cos, sin)


class NormalizedAttention(Attention):
    """nGPT: queries and keys on the sphere, scaled by s_qk; the scores' scale is √K; α says how far the block moves.

    s_qk² on q alone stands for s_qk on both, and since a rotation keeps lengths, q and k need one factor a head each.
    """

    def __init__(self, blueprint: Blueprint, name: str):
        super().__init__(blueprint, name)
        self.qk_scale = parameter(blueprint.parameters[f"{name}.qk_scale"], self.axis)
        self.alpha = parameter(blueprint.parameters[f"{name}.alpha"], self.axis)
        self.softmax_scale = score_factor(blueprint.model.rope_scaling) * math.sqrt(self.head_size)

    def position(self, q_BTHK, k_BTGK, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
        """s_qk² ∘ Norm(rope(q)) and Norm(rope(k))."""
        squared_HK = effective(self.qk_scale).square().repeat_interleave(self.heads // self.groups, 0)
        return to_sphere(q_BTHK, cos, sin, squared_HK), to_sphere(k_BTGK, cos, sin, None)


def causal_attention(q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(scale · q kᵀ) v through torch's fused kernels, [B, T, H, K]; each token sees all up to itself."""
    out = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BTGK.transpose(1, 2),
        v_BTGK.transpose(1, 2),
        is_causal=True,
        scale=scale,
        enable_gqa=q_BTHK.shape[2] != k_BTGK.shape[2],
    )
    return out.transpose(1, 2)
