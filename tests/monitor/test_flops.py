"""The FLOP formula against a count by hand and against PyTorch's own counter."""

import pytest
import torch
from torch.nn.functional import linear, silu
from torch.utils.flop_counter import FlopCounterMode

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.monitor.flops import flops_per_token


def test_count_by_hand():
    """d 8, two heads of 4, f 32, context 3, one layer, V 10: the paper's shape in small."""
    model = Model(layers=1, hidden=8, heads=2, context=3)
    matrices = 2 * (4 * 8 * 8 + 3 * 8 * 32)
    attention = 2 * 2 * (2 * 4) * 2  # two products, 2 a multiply-add, 2 heads of 4, 2 positions on average
    assert flops_per_token(model, vocab=10) == 3 * (matrices + attention + 2 * 8 * 10)


def test_baseline_costs_the_same():
    assert flops_per_token(Model(arch="gpt"), 100) == flops_per_token(Model(arch="ngpt"), 100)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_agrees_with_torchs_counter(kv_heads):
    """A plain decoder's products, counted by PyTorch over the full square of the attention, which we halve."""
    model = Model(layers=2, hidden=32, heads=4, kv_heads=kv_heads, ffn=48, context=16)
    vocab, tokens, d = 40, 2 * model.context, model.hidden
    with FlopCounterMode(display=False) as counter:
        _plain_decoder(model, vocab, batch=2).sum().backward()
    square, causal = model.context, (model.context + 1) / 2
    beyond_causal = 3 * model.layers * 2 * 2 * d * (square - causal)
    assert counter.get_total_flops() == tokens * (flops_per_token(model, vocab) + beyond_causal)


def _plain_decoder(model: Model, vocab: int, batch: int) -> torch.Tensor:
    """Logits [batch, context, vocab] of a decoder without norms; its input asks for a gradient, so every product counts."""
    d, k, f = model.hidden, model.head_size, model.ffn_size

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, requires_grad=True)

    hidden = torch.randn(batch, model.context, d, requires_grad=True)
    for _ in range(model.layers):
        counts = model.heads, model.groups, model.groups
        q, key, value = (linear(hidden, weight(n * k, d)).unflatten(-1, (n, k)).transpose(1, 2) for n in counts)
        share = model.heads // model.groups
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
        scores = q @ key.transpose(-1, -2)
        attended = (scores @ value).transpose(1, 2).flatten(-2)
        hidden = hidden + linear(attended, weight(d, d))
        hidden = hidden + linear(linear(hidden, weight(f, d)) * silu(linear(hidden, weight(f, d))), weight(d, f))
    return linear(hidden, weight(vocab, d))
