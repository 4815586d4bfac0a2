"""Causal attention in rectangles: over the documents of a window, and over context ranks whose keys and values travel in a ring.

Each rank keeps its queries. Keys and values go from rank to rank, c − 1 times in forward; results of rectangles are joined by their
softmax statistics in fp32. In backward they travel again, with their gradients in fp32 behind them, c times, so that these come home.
One rank alone sends nothing. Shapes: B batch, T queries and keys held here, H query heads, G key/value heads, K head size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.attention_blocks import Block, attend, attend_backward
from megatron_ngpt.parallel.attention_plan import blocks, held_runs
from megatron_ngpt.parallel.collectives import axis_named
from megatron_ngpt.parallel.documents import document_runs
from megatron_ngpt.parallel.grid import ALONE, Axis


def attention_in_blocks(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    scale: float,
    axis: Axis = ALONE,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ + causal mask) v, [B, T, H, K], in q's dtype. In a compiled graph one operator.

    Args:
        axis: the ranks that the window is divided over, as `held_runs(..., "ring")`; an axis of one holds all of it.
        bounds: of the whole window's `Documents`, which do not see each other, in host memory; None: each row is one document.
    """
    turns = None if torch.compiler.is_compiling() else _turns(q_BTHK, axis, bounds)
    return _BlockAttention.apply(q_BTHK, k_BTGK, v_BTGK, scale, axis, bounds, turns)


def _turns(q_BTHK: torch.Tensor, axis: Axis, bounds: torch.Tensor | None) -> list[list[Block]]:
    """The blocks between this rank's queries and the keys that are here in each turn."""
    context = q_BTHK.shape[1] * axis.size
    documents = None if bounds is None else document_runs(bounds, context)
    runs = [held_runs(context, axis.size, rank, "ring") for rank in range(axis.size)]
    return [blocks(runs[axis.rank], runs[(axis.rank - turn) % axis.size], documents) for turn in range(axis.size)]


class _BlockAttention(torch.autograd.Function):
    """Without `turns` in a graph, whose operators find them when it runs."""

    @staticmethod
    def forward(ctx, q, k, v, scale: float, axis: Axis, bounds: torch.Tensor | None, turns: Sequence[list[Block]] | None):
        out, lse = _in_graph(q, k, v, bounds, scale, axis.name) if turns is None else _attend(q, k, v, scale, axis, turns)
        ctx.save_for_backward(q, k, v, out, lse, bounds)
        ctx.scale, ctx.axis, ctx.turns = scale, axis, turns
        return out

    @staticmethod
    def backward(ctx, grad):
        *kept, bounds = ctx.saved_tensors
        if ctx.turns is None:
            found = _backward_in_graph(grad, *kept, bounds, ctx.scale, ctx.axis.name)
        else:
            found = _attend_backward(grad, *kept, ctx.scale, ctx.axis, ctx.turns)
        grad_q, (grad_k, grad_v) = found[0], found[1].transpose(2, 3)
        return grad_q, grad_k, grad_v, None, None, None, None


@torch.library.custom_op("megatron_ngpt::attention_in_blocks", mutates_args=())
def _in_graph(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor | None, scale: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    axis = axis_named(group)
    return _attend(q, k, v, scale, axis, _turns(q, axis, bounds))


@_in_graph.register_fake
def _(q, k, v, bounds, scale, group):
    return q.new_empty(q.shape), _no_scores(q)


@torch.library.custom_op("megatron_ngpt::attention_in_blocks_backward", mutates_args=())
def _backward_in_graph(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    bounds: torch.Tensor | None, scale: float, group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    axis = axis_named(group)
    return _attend_backward(grad, q, k, v, out, lse, scale, axis, _turns(q, axis, bounds))


@_backward_in_graph.register_fake
def _(grad, q, k, v, out, lse, bounds, scale, group):
    return q.new_empty(q.shape), k.new_empty((2, *k.transpose(1, 2).shape))


def _attend(q_BTHK, k_BTGK, v_BTGK, scale: float, axis: Axis, turns: Sequence[list[Block]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The output [B, T, H, K], and log Σ exp of each query's scores, fp32 [B, H, T]."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    joined = _Joined(q_BTHK) if axis.size > 1 else _Placed(q_BTHK)
    held = torch.stack([k, v]) if axis.size > 1 else (k, v)
    for turn, found in enumerate(turns):
        coming = _pass_on(held, axis) if turn + 1 < len(turns) else None
        for b in found:
            joined.add(b, *attend(q[b.rows, :, b.queries], held[0][b.rows, :, b.keys], held[1][b.rows, :, b.keys], b.causal, scale))
        if coming:
            held = coming()
    return joined.result()


def _attend_backward(grad_BTHK, q_BTHK, k_BTGK, v_BTGK, out_BTHK, lse, scale: float, axis: Axis, turns: Sequence[list[Block]]):
    """The gradients of q, [B, T, H, K], and of k and v as they travel, [2, B, G, T, K]."""
    grad, q, k, v, out = (x.transpose(1, 2) for x in (grad_BTHK, q_BTHK, k_BTGK, v_BTGK, out_BTHK))
    alone = axis.size == 1
    held = (k, v) if alone else torch.stack([k, v])
    sums = q.dtype if alone else torch.float32
    grad_q = torch.zeros(q_BTHK.shape, dtype=sums, device=q.device)
    grads = torch.zeros((2, *k.shape), dtype=sums, device=q.device)
    for turn, found in enumerate(turns):
        coming = _pass_on(held, axis) if turn + 1 < len(turns) else None
        for b in found:
            at, keys = (b.rows, slice(None), b.queries), (b.rows, slice(None), b.keys)
            parts = attend_backward(grad[at], q[at], held[0][keys], held[1][keys], out[at], lse[at], b.causal, scale)
            for total, part in zip((grad_q.transpose(1, 2)[at], grads[0][keys], grads[1][keys]), parts, strict=True):
                total.add_(part)
        if not alone:
            grads = _pass_on(grads, axis)()
        if coming:
            held = coming()
    return grad_q.to(q.dtype), grads.to(k.dtype)


class _Placed:
    """Results of blocks that divide the queries among them: each stands where it belongs."""

    def __init__(self, q_BTHK: torch.Tensor):
        self._whole, self._lse = torch.empty(q_BTHK.shape, dtype=q_BTHK.dtype, device=q_BTHK.device), _no_scores(q_BTHK)
        self._out = self._whole.transpose(1, 2)

    def add(self, block: Block, out: torch.Tensor, lse: torch.Tensor) -> None:
        """One block's result."""
        self._out[block.rows, :, block.queries] = out
        self._lse[block.rows, :, block.queries] = lse

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output [B, T, H, K], log Σ exp) of all queries."""
        return self._whole, self._lse


class _Joined:
    """Results of blocks whose keys are parts of a row of scores: means weighted by Σ exp, in fp32."""

    def __init__(self, q_BTHK: torch.Tensor):
        self._whole, self._lse = torch.zeros(q_BTHK.shape, dtype=torch.float32, device=q_BTHK.device), _no_scores(q_BTHK)
        self._out, self._dtype = self._whole.transpose(1, 2), q_BTHK.dtype

    def add(self, block: Block, out: torch.Tensor, lse: torch.Tensor) -> None:
        """One block's result."""
        at = (block.rows, slice(None), block.queries)
        before, total = self._lse[at], torch.logaddexp(self._lse[at], lse)
        kept = self._out[at] * (before - total).exp().unsqueeze(-1)
        self._out[at] = kept.add_(out * (lse - total).exp().unsqueeze(-1))
        self._lse[at] = total

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output [B, T, H, K], log Σ exp) of all queries."""
        return self._whole.to(self._dtype), self._lse


def _no_scores(q_BTHK: torch.Tensor) -> torch.Tensor:
    """log Σ exp of no scores, fp32 [B, H, T]."""
    return torch.full(q_BTHK.transpose(1, 2).shape[:-1], -torch.inf, dtype=torch.float32, device=q_BTHK.device)


def _pass_on(x: torch.Tensor, axis: Axis):
    """Begin to send `x` to the next rank; returns a function that waits and gives what came from the one before."""
    received, sent = torch.empty_like(x), x.contiguous()
    ranks = dist.get_process_group_ranks(axis.group)
    following, before = ranks[(axis.rank + 1) % axis.size], ranks[(axis.rank - 1) % axis.size]
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, sent, following, axis.group), dist.P2POp(dist.irecv, received, before, axis.group)]
    )

    def wait() -> torch.Tensor:
        for work in works:
            work.wait()
        return received

    return wait
