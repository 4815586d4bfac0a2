"""Attention over a rectangle of queries and keys, with the softmax statistics that let rectangles be joined.

A causal window, one that is divided among ranks, and one of several documents are all a few such rectangles, in which every query
sees every key or, on the diagonal, those up to its own place. No mask is ever made. Shapes: B batch, H query heads, G key/value heads
(G divides H), T queries, S keys, K head size.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Block:
    """A rectangle: which rows of the batch, which of the queries held here, which of the keys at hand.

    Attributes:
        causal: a square on the diagonal, where query i sees keys up to i; else every query sees every key.
    """

    rows: slice
    queries: slice
    keys: slice
    causal: bool


def attend(
    q_BHTK: torch.Tensor, k_BGSK: torch.Tensor, v_BGSK: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale · q kᵀ) v in q's dtype [B, H, T, K], and log Σ exp of each query's scores, fp32 [B, H, T]."""
    if q_BHTK.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHTK, k_BGSK, v_BGSK, 0.0, causal, scale=scale)
    k_BHSK, v_BHSK = (_one_a_query_head(x, q_BHTK.shape[1]) for x in (k_BGSK, v_BGSK))
    if q_BHTK.dtype == torch.float32:
        found = torch.ops.aten._scaled_dot_product_efficient_attention(
            q_BHTK, k_BHSK, v_BHSK, None, True, 0.0, causal, scale=scale
        )
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention(q_BHTK, k_BHSK, v_BHSK, 0.0, causal, False, scale=scale)
    return found[0], found[1][:, :, : q_BHTK.shape[2]]


def attend_backward(
    grad_BHTK: torch.Tensor,
    q_BHTK: torch.Tensor,
    k_BGSK: torch.Tensor,
    v_BGSK: torch.Tensor,
    out_BHTK: torch.Tensor,
    lse_BHT: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v. `out` and `lse` are those of the whole row of scores, of which these keys may be a part."""
    if q_BHTK.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_BHTK, q_BHTK, k_BGSK, v_BGSK, out_BHTK, lse_BHT.contiguous(), 0.0, causal, scale=scale
        )
    heads = q_BHTK.shape[1]
    k_BHSK, v_BHSK = (_one_a_query_head(x, heads) for x in (k_BGSK, v_BGSK))
    seed = torch.zeros(2, dtype=torch.uint64, device=q_BHTK.device)  # of a dropout that never happens
    if q_BHTK.dtype == torch.float32:
        padding = -lse_BHT.shape[2] % 32  # the kernel's own layout of the statistics
        lse_BHT = torch.nn.functional.pad(lse_BHT, (0, padding), value=torch.inf).contiguous()
        zero = torch.zeros((), dtype=torch.int64, device=q_BHTK.device)
        grad_q, grad_k, grad_v, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            grad_BHTK, q_BHTK, k_BHSK, v_BHSK, None, out_BHTK, lse_BHT, zero, zero, 0.0, (True, True, True, False), causal, scale=scale
        )
    else:
        grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad_BHTK, q_BHTK, k_BHSK, v_BHSK, out_BHTK, lse_BHT.contiguous(), None, None, q_BHTK.shape[2], k_BHSK.shape[2],
            0.0, causal, seed, seed, scale=scale,
        )
    return grad_q, _sum_of_query_heads(grad_k, k_BGSK.shape[1]), _sum_of_query_heads(grad_v, v_BGSK.shape[1])


def _one_a_query_head(x_BGSK: torch.Tensor, heads: int) -> torch.Tensor:
    return x_BGSK if x_BGSK.shape[1] == heads else x_BGSK.repeat_interleave(heads // x_BGSK.shape[1], 1)


def _sum_of_query_heads(x_BHSK: torch.Tensor, groups: int) -> torch.Tensor:
    return x_BHSK if x_BHSK.shape[1] == groups else x_BHSK.unflatten(1, (groups, -1)).sum(2)
