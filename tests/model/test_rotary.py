"""The rotary embedding is a rotation, and Llama's; positions restart at documents."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.rotary import document_positions, rotate, rotation_table

B, T, H, K, BASE = 2, 50, 3, 16, 500.0
CPU = torch.device("cpu")
MODEL = Model(heads=H, hidden=H * K, rope_base=BASE)


def heads(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, H, K, generator=torch.Generator().manual_seed(seed))


def rotated(x: torch.Tensor) -> torch.Tensor:
    return rotate(x, *rotation_table(T, MODEL, CPU))


def test_lengths_are_kept():
    torch.testing.assert_close(rotated(heads()).norm(dim=-1), heads().norm(dim=-1), rtol=1e-6, atol=0)


def test_position_zero_stays():
    assert torch.equal(rotated(heads())[:, 0], heads()[:, 0])


def test_products_depend_on_the_distance_alone():
    q, k = heads(1)[:, :1].expand(B, T, H, K), heads(2)[:, :1].expand(B, T, H, K)
    products = torch.einsum("bqhk,bshk->bhqs", rotated(q), rotated(k))
    for distance in (0, 1, 7, T - 1):
        diagonal = products.diagonal(-distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert (products[..., 5, 0] - products[..., 0, 5]).abs().min() > 1e-3  # before is not after


def test_equals_complex_rotation_in_float64():
    x = heads().double()
    angles = torch.arange(T).double()[:, None] * BASE ** (-torch.arange(K // 2).double() / (K // 2))
    turned = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(rotated(heads()).double(), torch.cat([turned.real, turned.imag], -1), rtol=0, atol=3e-6)


def test_equals_llamas():
    config = LlamaConfig(
        hidden_size=H * K, num_attention_heads=H, head_dim=K, max_position_embeddings=T,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
    )  # fmt: skip
    cos, sin = LlamaRotaryEmbedding(config)(heads(), torch.arange(T).expand(B, T))
    q, k = apply_rotary_pos_emb(heads(1).transpose(1, 2), heads(2).transpose(1, 2), cos, sin)
    torch.testing.assert_close(rotated(heads(1)), q.transpose(1, 2), rtol=0, atol=5e-5)
    torch.testing.assert_close(rotated(heads(2)), k.transpose(1, 2), rtol=0, atol=5e-5)


def test_a_table_a_sequence():
    cos, sin = rotation_table(T, MODEL, CPU)
    positions = torch.stack([torch.arange(T), torch.arange(T).flip(0)])
    found = rotate(heads(), cos[positions], sin[positions])
    torch.testing.assert_close(found[0], rotated(heads())[0])
    torch.testing.assert_close(found[1], rotated(heads().flip(1))[1].flip(0))


def test_positions_restart_at_each_document():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3], [5, 5, 5, 5, 5, 5, 5, 5]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 3))
def test_positions_count_from_each_start(lengths, first):
    documents = torch.tensor([[first + d for d, length in enumerate(lengths) for _ in range(length)]])
    assert document_positions(documents).tolist() == [[i for length in lengths for i in range(length)]]
