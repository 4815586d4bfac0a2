"""Attention in blocks, on one rank and in a ring, equals float64 attention under a mask: output and gradients."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_ngpt.parallel.attention_plan import held_runs
from megatron_ngpt.parallel.documents import documents_of
from megatron_ngpt.parallel.grid import ALONE, Axis
from megatron_ngpt.parallel.ring import attention_in_blocks
from tests.on_ranks import on_ranks
from tests.worst import worst

ROWS, CONTEXT, HEADS, GROUPS, SIZE = 3, 48, 4, 2, 16
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 20 + [2] * 23, [0] * 48, [0] + [1] + [2] * 14 + [3] * 16 + [4] * 15 + [5]])
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 0.15}


def numbers() -> list[torch.Tensor]:
    """q, k, v and the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, CONTEXT, heads, SIZE) for heads in (HEADS, GROUPS, GROUPS, HEADS)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def reference(masked: bool) -> list[torch.Tensor]:
    """Output and gradients of q, k, v, in float64 with a mask."""
    *qkv, grad = numbers()
    for x in qkv:
        x.requires_grad_()
    mask = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    if masked:
        mask = mask & (DOCUMENTS.unsqueeze(1) == DOCUMENTS.unsqueeze(2)).unsqueeze(1)
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), attn_mask=mask, scale=0.5, enable_gqa=True)
    out.transpose(1, 2).backward(grad)
    return [out.detach().transpose(1, 2), *(x.grad for x in qkv)]


def strays(size: int, masked: bool, dtype: torch.dtype) -> list[float]:
    """The largest differences on this rank of `size`: output, gradients of q, k, v."""
    axis = Axis(dist.get_rank(), size, dist.group.WORLD) if size > 1 else ALONE
    held = torch.cat([torch.arange(*run) for run in held_runs(CONTEXT, size, axis.rank, "ring")])
    *qkv, grad = (x[:, held].to(dtype) for x in numbers())
    for x in qkv:
        x.requires_grad_()
    bounds = documents_of(DOCUMENTS, DOCUMENTS.device).bounds if masked else None
    out = attention_in_blocks(*qkv, 0.5, axis, bounds)
    assert out.dtype == dtype
    out.backward(grad)
    found = [out.detach(), *(x.grad for x in qkv)]
    return [(x.double() - want[:, held]).abs().max().item() for x, want in zip(found, reference(masked), strict=True)]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_on_one_rank(masked, dtype):
    assert max(strays(1, masked, dtype)) <= LIMIT[dtype]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ring(size, masked):
    for dtype in LIMIT:
        for found in on_ranks(size, strays, size, masked, dtype):
            assert worst(found) <= LIMIT[dtype]
