"""Causal attention in which each document of a window sees itself alone, without a mask: what it costs shrinks with the documents.

Shapes: B batch, T tokens, N = B · T, H query heads, G key/value heads, K head size.
"""

import torch

from megatron_ngpt.parallel.documents import Documents, document_count
from megatron_ngpt.parallel.grid import ALONE, Axis
from megatron_ngpt.parallel.ring import attention_in_blocks


def document_attention(
    q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, scale: float, documents: Documents, ring: Axis = ALONE
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v within documents, [B, T, H, K]. Every rank here has whole sequences, or each of `ring` its positions.

    On GPUs in half precision one kernel for all documents of whole sequences, elsewhere one rectangle after another; in a compiled
    graph one operator, which finds the documents when it runs.
    """
    if ring.size > 1 or not _has_one_kernel(q_BTHK):
        return attention_in_blocks(q_BTHK, k_BTGK, v_BTGK, scale, ring, documents.bounds)
    return _in_one_kernel(*(x.flatten(0, 1) for x in (q_BTHK, k_BTGK, v_BTGK)), *documents, scale)[0].view(q_BTHK.shape)


def _has_one_kernel(q_BTHK: torch.Tensor) -> bool:
    return q_BTHK.is_cuda and q_BTHK.dtype != torch.float32


@torch.library.custom_op("megatron_ngpt::document_attention", mutates_args=())
def _in_one_kernel(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, on_device: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [N, H, K], and log Σ exp of each query's scores, fp32 [H, N]."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    starts, longest = _told(bounds, on_device)
    out, lse = varlen_attn(
        q, k, v, starts, starts, longest, longest,
        return_aux=AuxRequest(lse=True), scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.contiguous(), lse.contiguous()


@_in_one_kernel.register_fake
def _(q, k, v, bounds, on_device, scale):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("megatron_ngpt::document_attention_backward", mutates_args=())
def _backward_in_one_kernel(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    bounds: torch.Tensor, on_device: torch.Tensor, scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from torch.nn.attention import varlen

    starts, longest = _told(bounds, on_device)
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of a dropout that never happens
    found = varlen._varlen_attn_backward(
        grad, q, k, v, out, lse, starts, starts, longest, longest, True, seed, scale, [-1, 0]
    )
    return tuple(x.contiguous() for x in found)


@_backward_in_one_kernel.register_fake
def _(grad, q, k, v, out, lse, bounds, on_device, scale):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, grad, _):
    q, k, v, bounds, on_device, out, lse = ctx.saved_tensors
    return *_backward_in_one_kernel(grad, q, k, v, out, lse, bounds, on_device, ctx.scale), None, None, None


_in_one_kernel.register_autograd(_gradients, setup_context=_keep)


def _told(bounds: torch.Tensor, on_device: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What the kernels read of `Documents`: where each document starts and the last one ends, and tokens of the longest."""
    count = document_count(bounds) + 1
    return on_device[:count], int(bounds[:count].diff().max())
