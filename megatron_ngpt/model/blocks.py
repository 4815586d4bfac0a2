"""The two kinds of block: nGPT's, two steps of an optimiser on the sphere, and the baseline's, two residual additions."""

from contextlib import nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import save_on_cpu

from megatron_ngpt.model.attention import Attention, NormalizedAttention, Past
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.feed_forward import FeedForward, NormalizedFeedForward
from megatron_ngpt.model.recompute import recomputed, selectively
from megatron_ngpt.model.scales import effective
from megatron_ngpt.model.window import Window
from megatron_ngpt.parallel.compilation import when_called
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.regions import copy_to_ranks
from megatron_ngpt.sphere.steps import lerp_towards, slerp_towards


def shared_by_ranks(replica: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
    """A replicated parameter as a rank uses it: where ranks see slices of the sequence, its gradient is the sum of theirs, taken inside
    backward because ZeRO collects gradients as they appear."""
    return copy_to_ranks(replica, blueprint.grid.tensor) if blueprint.sequence else replica


class RMSNorm(nn.Module):
    """x / rms(x) ∘ weight, in fp32, as Llama's."""

    def __init__(self, blueprint: Blueprint, name: str):
        super().__init__()
        self.blueprint = blueprint
        self.weight = parameter(blueprint.parameters[f"{name}.weight"], blueprint.grid.tensor)

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        weight = shared_by_ranks(self.weight, self.blueprint)
        return selectively(self.blueprint, self._norm, h_BTD, weight.float())

    def _norm(self, h_BTD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(h_BTD.float(), h_BTD.shape[-1:], weight_D, self.blueprint.model.norm_eps)


class Block(nn.Module):
    """What both kinds share: a number, recomputation and compilation. A kind defines `step`, which inference calls with
    the `past` of each block."""

    fusion: ClassVar[dict[str, int]] = {}  # options of the compiler's

    def __init__(self, blueprint: Blueprint, number: int):
        super().__init__()
        self.blueprint, self.number = blueprint, number
        self.build(blueprint, f"model.layers.{number}")
        self._run = when_called(self.step, options=self.fusion) if blueprint.compile else self.step

    def forward(self, h_BTD: torch.Tensor, window: Window) -> torch.Tensor:
        """One block on h [B, T, D], or on this rank's slice of the sequence."""
        if self.blueprint.recompute != "full" or not torch.is_grad_enabled():
            return self._run(h_BTD, window)
        with save_on_cpu(pin_memory=h_BTD.is_cuda) if self.blueprint.offload else nullcontext():
            return recomputed(self._run, h_BTD, window)


class NormalizedBlock(Block):
    """h ← Norm(h + α_A (h_A − h)), then h ← Norm(h + α_M (h_M − h)), or the same along great circles."""

    fusion: ClassVar = {"realize_reads_threshold": 100}  # computed again by each pass, not written for the next: a step's six sums read h

    def build(self, blueprint: Blueprint, name: str) -> None:
        """The block's parts, called `name` in the table of parameters."""
        self.self_attn = NormalizedAttention(blueprint, f"{name}.self_attn")
        self.mlp = NormalizedFeedForward(blueprint, f"{name}.mlp")

    def step(self, h_BTD: torch.Tensor, window: Window, past: Past | None = None) -> torch.Tensor:
        """One block on h [B, T, D], which is on the sphere before and after."""
        x_BTD = h_BTD.to(self.self_attn.q_proj.weight.dtype)
        h_BTD = self._moved(h_BTD, self.self_attn(x_BTD, window, past), self._rates(self.self_attn.alpha), x_BTD)
        x_BTD = h_BTD.to(x_BTD.dtype)
        return self._moved(h_BTD, self.mlp(x_BTD), self._rates(self.mlp.alpha), x_BTD)

    def _moved(self, h_BTD: torch.Tensor, output_BTD: torch.Tensor, rates_D: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        """One step from h, which the part's products read as `x`, towards what it put out."""
        towards = lerp_towards if self.blueprint.model.update == "lerp" else slerp_towards
        return towards(h_BTD, output_BTD, rates_D, x_BTD)

    def _rates(self, alpha: nn.Parameter) -> torch.Tensor:
        return shared_by_ranks(effective(alpha), self.blueprint)


class BaselineBlock(Block):
    """Pre-norm: h ← h + attention(RMSNorm(h)), then h ← h + feed-forward(RMSNorm(h))."""

    def build(self, blueprint: Blueprint, name: str) -> None:
        """The block's parts, called `name` in the table of parameters."""
        self.input_layernorm = RMSNorm(blueprint, f"{name}.input_layernorm")
        self.self_attn = Attention(blueprint, f"{name}.self_attn")
        self.post_attention_layernorm = RMSNorm(blueprint, f"{name}.post_attention_layernorm")
        self.mlp = FeedForward(blueprint, f"{name}.mlp")

    def step(self, h_BTD: torch.Tensor, window: Window, past: Past | None = None) -> torch.Tensor:
        """One block on h [B, T, D]."""
        dtype = self.blueprint.residual_dtype
        h_BTD = (h_BTD + self.self_attn(self.input_layernorm(h_BTD), window, past)).to(dtype)
        return (h_BTD + self.mlp(self.post_attention_layernorm(h_BTD))).to(dtype)
