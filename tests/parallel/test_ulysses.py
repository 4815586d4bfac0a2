"""Attention by heads equals attention on one rank, output and gradients, for any number of key/value heads."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_ngpt.config.costs.traffic import copies
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.ulysses import attention_by_heads
from tests.on_ranks import on_ranks
from tests.worst import worst

CONTEXT, HEADS, SIZE = 24, 12, 8


def attend(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def strays(size: int, groups: int) -> list[float]:
    """The largest differences on this rank: output, gradients of q, k, v."""
    generator = torch.Generator().manual_seed(0)
    *qkv, grad = (torch.randn(2, CONTEXT, heads, SIZE, generator=generator) for heads in (HEADS, groups, groups, HEADS))
    for x in qkv:
        x.requires_grad_()
    out = attend(*qkv)
    out.backward(grad)
    wanted = [out.detach(), *(x.grad for x in qkv)]
    axis = Axis(dist.get_rank(), size, dist.group.WORLD)
    parts = [x.detach().chunk(size, 1)[axis.rank].requires_grad_() for x in qkv]
    ours = attention_by_heads(*parts, axis, attend)
    ours.backward(grad.chunk(size, 1)[axis.rank])
    found = [ours.detach(), *(x.grad for x in parts)]
    return [(x - want.chunk(size, 1)[axis.rank]).abs().max().item() for x, want in zip(found, wanted, strict=True)]


@pytest.mark.parametrize(("size", "groups"), [(2, 12), (2, 2), (2, 1), (4, 4), (4, 6), (4, 2), (4, 1), (3, 4)])
def test_heads_over_ranks(size, groups):
    for found in on_ranks(size, strays, size, groups):
        assert worst(found) <= 1e-5


@pytest.mark.parametrize(("groups", "ranks", "times"), [(4, 2, 1), (4, 4, 1), (2, 4, 2), (1, 4, 4), (6, 4, 2), (4, 3, 3)])
def test_copies(groups, ranks, times):
    assert copies(groups, ranks) == times
