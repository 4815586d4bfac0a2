"""Rotary position embedding: a rotation of pairs (i, i + K/2) of a head's entries (half-split layout, as Llama's).

Scaled to reach further than before (`model.rope_scaling`), it stays a rotation: what YaRN does to the attention's sharpness is a factor
of the scores.
"""

import math
from functools import lru_cache

import torch

from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.parallel.documents import document_starts
from megatron_ngpt.parallel.row_parts import row_parts

FAST, SLOW = 32, 1  # YaRN leaves pairs that turn this often within the original context, and stretches those that turn no more than so


@lru_cache(maxsize=8)
def rotation_table(context: int, model: Model, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rotate` multiplies a head and its swapped halves by, fp32 [context, K] each: every position's (cos, cos) and (−sin, sin)."""
    angles = torch.arange(context, device=device, dtype=torch.float64).outer(frequencies(model).to(device))
    return angles.cos().float().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), 1).float()


def frequencies(model: Model) -> torch.Tensor:
    """Each pair's angle from one position to the next, float64 [K/2]: base^(−2i/K), scaled as the model says."""
    scaling, size = model.rope_scaling, model.head_size
    angles = model.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling.kind == "linear":
        return angles / scaling.factor
    if scaling.kind == "yarn":
        stretched = _stretched(model)
        return angles * (1 - stretched) + angles / scaling.factor * stretched
    return angles


def _stretched(model: Model) -> torch.Tensor:
    """How far YaRN stretches each pair, from 0 to 1, float64 [K/2].

    The pair that turns r times within L tokens is K ln(L / 2πr) / (2 ln base); between those of both limits lies a ramp
    (arXiv 2309.00071, section 3.2, rounded to whole pairs as `transformers` does).
    """
    size, scaling = model.head_size, model.rope_scaling

    def pair_turning(times: int) -> float:
        return size * math.log(scaling.original_context / (2 * math.pi * times)) / (2 * math.log(model.rope_base))

    low, high = max(math.floor(pair_turning(FAST)), 0), min(math.ceil(pair_turning(SLOW)), size - 1)
    width = high - low or 0.001  # a step where both limits are one pair
    return ((torch.arange(size // 2, dtype=torch.float64) - low) / width).clamp(0, 1)


def score_factor(scaling: RopeScaling) -> float:
    """What multiplies the scale of the scores: under YaRN (0.1 ln factor + 1)², which sharpens attention, else 1.

    Elsewhere cos and sin of queries and keys are multiplied by its root; nGPT's norms would undo that.
    """
    return (0.1 * math.log(scaling.factor) + 1) ** 2 if scaling.kind == "yarn" else 1.0


def rotate(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each head of `x` rotated by its position's angles; fp32. cos, sin: of `rotation_table`, [T, K] or [B, T, K]; −sin turns back."""
    halves = x_BTHK.float().unflatten(-1, (2, -1))
    cos, sin = (table.unflatten(-1, (2, -1)).unsqueeze(-3) for table in (cos, sin))
    if torch.compiler.is_compiling():  # it reads swapped halves by an index, in one kernel, and makes kernels of their own of `cat`
        return (halves * cos + halves.flip(-2) * sin).flatten(-2)
    turned = halves * cos
    for half in (0, 1):
        turned[..., half, :].addcmul_(halves[..., 1 - half, :], sin[..., half, :])
    return turned.flatten(-2)


def turn(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same in the dtype of x, some positions at a time (`row_parts`)."""
    return _Turn.apply(x_BTHK, cos, sin) if torch.is_grad_enabled() else rotate(x_BTHK, cos, sin).to(x_BTHK.dtype)


class _Turn(torch.autograd.Function):
    """Backward turns back, and keeps nothing but the tables."""

    @staticmethod
    def forward(ctx, x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_BTHK, cos, sin)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x_BTHK: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    out_BTHK = x_BTHK.new_empty(x_BTHK.shape)
    for out, x, cos_, sin_ in row_parts(out_BTHK, x_BTHK, *of_samples(cos, sin), axis=1):
        out.copy_(rotate(x, cos_, sin_))
    return out_BTHK


def of_samples(*tables: torch.Tensor) -> list[torch.Tensor]:
    """[B, T, K]; what all samples share as [1, T, K]."""
    return [table.unsqueeze(0) if table.ndim == 2 else table for table in tables]


def document_positions(documents_BT: torch.Tensor) -> torch.Tensor:
    """Each token's position in its own document's part of the window, int64 [B, T]."""
    index = torch.arange(documents_BT.shape[1], device=documents_BT.device).expand_as(documents_BT)
    return index - torch.where(document_starts(documents_BT), index, 0).cummax(1).values
