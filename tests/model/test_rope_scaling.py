"""Rotary embeddings that reach further: the papers' formulas, and what `transformers` makes of the same numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_ngpt.checkpoint.exported import rope_entries
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.rotary import frequencies, rotation_table, score_factor
from megatron_ngpt.model.window import window_of
from tests import rope
from tests.model import equations
from tests.model.equations import norm, softmax_attention
from tests.model.small import SHAPE, blueprint, tokens, trained

KINDS = ["linear", "ntk", "yarn"]


def model(kind: str, size: int = 32, base: float = 500.0, factor: float = 4.0, original: int = 256) -> Model:
    scaling = {"kind": kind, "factor": factor, **({"original_context": original} if kind == "yarn" else {})}
    return Model(heads=2, hidden=2 * size, context=int(original * factor), rope_base=base, rope_scaling=scaling)


@given(
    kind=st.sampled_from(KINDS), half=st.integers(2, 64), base=st.floats(2, 1e7), factor=st.floats(1.01, 64), original=st.integers(8, 10**6)
)
def test_frequencies_are_the_papers(kind, half, base, factor, original):
    found = frequencies(model(kind, 2 * half, base, factor, original))
    wanted = rope.frequencies(kind, 2 * half, base, factor, original)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_what_the_kinds_are_for():
    """All slower; the slowest by the factor and the fastest as before; both ends so, and a ramp between."""
    plain, factor = frequencies(Model(heads=2, hidden=64, rope_base=500.0)), 4.0
    linear, ntk, yarn = (plain / frequencies(model(kind)) for kind in KINDS)
    assert linear.tolist() == pytest.approx([factor] * 16)
    assert ntk[0] == 1 and ntk[-1] == pytest.approx(factor) and (ntk.diff() > 0).all()
    assert yarn[0] == 1 and yarn[-1] == pytest.approx(factor) and (yarn.diff() >= 0).all() and len(set(yarn.tolist())) > 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("original", [12, 256, 4096])
def test_rotation_is_llamas(kind, original):
    ours = model(kind, original=original)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32, max_position_embeddings=ours.context, rope_parameters=rope_entries(ours)
    )
    embedding = LlamaRotaryEmbedding(config)
    positions = torch.arange(300)
    cos, sin = embedding(torch.zeros(1), positions[None])
    root = math.sqrt(score_factor(ours.rope_scaling))
    sin[..., :16] *= -1  # what the swapped halves are multiplied by
    for found, wanted in zip(rotation_table(300, ours, torch.device("cpu")), (cos, sin), strict=True):
        torch.testing.assert_close(found * root, wanted[0], rtol=0, atol=1e-4)


def attention_of(turns, scale):
    """nGPT's attention of `tests.model.equations`, its positions and its scores' scale given."""

    def turned(x_BTHK):
        angles = torch.arange(x_BTHK.shape[1]).double()[:, None] * torch.from_numpy(turns)
        first, second = x_BTHK.chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def ngpt(h, w):
        size = w["qk_scale"].shape[1]
        s_qk = (w["qk_scale"] * math.sqrt(h.shape[-1])).repeat_interleave(equations.SHARED, 0)
        q, k, v = equations.heads(h, w, size)
        q, k = s_qk * norm(turned(q)), s_qk * norm(turned(k))
        return softmax_attention(q, k, v, scale * math.sqrt(size)).flatten(-2) @ w["o_proj.weight"]

    return ngpt


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_is_the_equation(kind):
    """The temperature acts on the scores, where nGPT's norms don't undo it."""
    scaling = {"kind": kind, "factor": 8.0, **({"original_context": 16} if kind == "yarn" else {})}
    plan = blueprint(rope_scaling=scaling, rope_base=100.0)
    module = trained(plan)
    part = module.layers[1].self_attn
    h = norm(torch.randn(2, 16, SHAPE["hidden"], generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    size = plan.model.head_size
    equation = attention_of(rope.frequencies(kind, size, 100.0, 8.0, 16), rope.sharpness(kind, 8.0))
    weights = {name: parameter.double() for name, parameter in part.named_parameters()}
    found = part(h.float(), window_of(plan, 16, None, module)).double()
    torch.testing.assert_close(found, equation(h, weights), rtol=0, atol=1e-5)
    unscaled = attention_of(rope.frequencies("none", size, 100.0), 1.0)(h, weights)
    assert (found - unscaled).abs().max() > 1e-3


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
@torch.no_grad()
def test_each_kind_is_another_function(arch):
    logits = {}
    for kind in ["none", *KINDS]:
        scaling = {"kind": kind} if kind == "none" else {"kind": kind, "factor": 4.0}
        scaling |= {"original_context": 16} if kind == "yarn" else {}
        module = trained(blueprint(arch, rope_scaling=scaling))
        assert isinstance(module, Decoder)
        logits[kind] = module(tokens(1, 16))
    kinds = list(logits)
    for number, kind in enumerate(kinds):
        for other in kinds[:number]:
            assert (logits[kind] - logits[other]).abs().max() > 1e-6, (kind, other)
