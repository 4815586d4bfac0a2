"""Parameters and FLOPs of real modules, counted by torch, and the paper's numbers."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.config.costs.work import checkpoint_bytes, flops_per_token, parameters, products_per_token
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder

V = 40
SMALL = {"layers": 2, "hidden": 32, "heads": 4, "ffn": 48, "context": 16}


def on_meta(model: Model) -> Decoder:
    """The model as training builds it, without memory."""
    with torch.device("meta"):
        return Decoder(Blueprint(model, V))


@pytest.mark.parametrize(("arch", "layers", "hidden", "heads", "count"), [
    ("ngpt", 24, 1024, 16, 468_491_520), ("ngpt", 36, 1280, 20, 1_026_177_280),
    ("gpt", 24, 1024, 16, 468_239_360), ("gpt", 36, 1280, 20, 1_025_731_840),
])
def test_the_papers_models_have_the_papers_parameters(arch, layers, hidden, heads, count):
    model = Model(arch=arch, layers=layers, hidden=hidden, heads=heads)
    assert parameters(model, 32_000) == count
    assert checkpoint_bytes(model, 32_000) == 12 * count


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_parameters_are_those_of_the_module(arch, kv_heads):
    model = Model(arch=arch, kv_heads=kv_heads, **SMALL)
    assert parameters(model, V) == sum(parameter.numel() for parameter in on_meta(model).parameters())


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_flops_are_those_that_torch_counts_in_a_training_step(arch, kv_heads):
    """Torch's kernel for this counts the full square of the attention, of which a causal window needs a half."""
    model = Model(arch=arch, kv_heads=kv_heads, **SMALL)
    module, tokens = on_meta(model), torch.zeros(3, model.context, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(tokens).sum().backward()
    square, causal = model.context, (model.context + 1) / 2
    beyond_causal = 3 * model.layers * 2 * 2 * model.hidden * (square - causal)
    assert counter.get_total_flops() == tokens.numel() * (flops_per_token(model, V) + beyond_causal)


def test_count_by_hand():
    """d 8, two heads of 4, f 32, context 3, one layer, V 10: the paper's shape in small."""
    model = Model(layers=1, hidden=8, heads=2, context=3)
    block = 4 * 8 * 8 + 3 * 8 * 32 + 2 * (2 * 4) * 2  # matrices; two products, 2 heads of 4, 2 positions on average
    assert products_per_token(model, 10) == [0, block, 8 * 10]
    assert flops_per_token(model, 10) == 3 * 2 * (block + 8 * 10)


def test_stages_are_balanced_by_products():
    """A vocabulary whose product costs two blocks leaves the last of two stages two blocks fewer."""
    model = Model(layers=6, hidden=8, heads=2, ffn=32, context=3)
    _, block, *_ = products_per_token(model, 1)
    assert stages_of(model, 2 * block // 8, 2) == [0, 5, 8]
    assert stages_of(model, 2 * block // 8, 1) == [0, 8]
