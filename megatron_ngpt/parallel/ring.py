"""Causal attention in rectangles: over the documents of a window, and over context ranks whose keys and values travel in a ring.

Each rank keeps its queries. Keys and values go from rank to rank, c − 1 times in forward; results of rectangles are joined by their
softmax statistics in fp32. In backward they travel again, with their gradients in fp32 behind them, c times, so that these come home.
One rank alone sends nothing. Shapes: B batch, T queries and keys held here, H query heads, G key/value heads, K head size.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.attention_blocks import Block, attend, attend_backward
from megatron_ngpt.parallel.attention_plan import Run, blocks, held_runs
from megatron_ngpt.parallel.grid import Axis

_ALONE = Axis()


@torch._disable_dynamo
def attention_in_blocks(
    q_BTHK: torch.Tensor,
    k_BTGK: torch.Tensor,
    v_BTGK: torch.Tensor,
    scale: float,
    axis: Axis = _ALONE,
    documents: list[list[Run]] | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ + causal mask) v, [B, T, H, K], in q's dtype.

    Args:
        axis: the ranks that the window is divided over, as `held_runs(..., "ring")`; an axis of one holds all of it.
        documents: for each row, the runs of its documents over the whole window, which do not see each other; None: one document.
    """
    context = q_BTHK.shape[1] * axis.size
    runs = [held_runs(context, axis.size, rank, "ring") for rank in range(axis.size)]
    turns = [blocks(runs[axis.rank], runs[(axis.rank - turn) % axis.size], documents) for turn in range(axis.size)]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    return _BlockAttention.apply(q, k, v, scale, axis, turns).transpose(1, 2)


class _BlockAttention(torch.autograd.Function):
    """Turn by turn, the blocks between this rank's queries and the keys that are here in that turn."""

    @staticmethod
    def forward(ctx, q, k, v, scale: float, axis: Axis, turns: Sequence[list[Block]]) -> torch.Tensor:
        joined = _Joined(q) if axis.size > 1 else _Placed(q)
        held = torch.stack([k, v]) if axis.size > 1 else (k, v)
        for turn, found in enumerate(turns):
            coming = _pass_on(held, axis) if turn + 1 < len(turns) else None
            for b in found:
                joined.add(b, *attend(q[b.rows, :, b.queries], held[0][b.rows, :, b.keys], held[1][b.rows, :, b.keys], b.causal, scale))
            if coming:
                held = coming()
        out, lse = joined.result()
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.axis, ctx.turns = scale, axis, turns
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        axis, alone = ctx.axis, ctx.axis.size == 1
        held = (k, v) if alone else torch.stack([k, v])
        sums = q.dtype if alone else torch.float32
        grad_q = torch.zeros(q.shape, dtype=sums, device=q.device)
        grads = torch.zeros((2, *k.shape), dtype=sums, device=q.device)
        for turn, found in enumerate(ctx.turns):
            coming = _pass_on(held, axis) if turn + 1 < len(ctx.turns) else None
            for b in found:
                at, keys = (b.rows, slice(None), b.queries), (b.rows, slice(None), b.keys)
                parts = attend_backward(
                    grad[at], q[at], held[0][keys], held[1][keys], out[at], lse[at], b.causal, ctx.scale
                )
                for total, part in zip((grad_q[at], grads[0][keys], grads[1][keys]), parts, strict=True):
                    total.add_(part)
            if not alone:
                grads = _pass_on(grads, axis)()
            if coming:
                held = coming()
        return grad_q.to(q.dtype), grads[0].to(k.dtype), grads[1].to(v.dtype), None, None, None


class _Placed:
    """Results of blocks that divide the queries among them: each stands where it belongs."""

    def __init__(self, q: torch.Tensor):
        self._out = torch.empty_like(q)
        self._lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)

    def add(self, block: Block, out: torch.Tensor, lse: torch.Tensor) -> None:
        """One block's result."""
        self._out[block.rows, :, block.queries] = out
        self._lse[block.rows, :, block.queries] = lse

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output, log Σ exp) of all queries."""
        return self._out, self._lse


class _Joined:
    """Results of blocks whose keys are parts of a row of scores: means weighted by Σ exp, in fp32."""

    def __init__(self, q: torch.Tensor):
        self._dtype = q.dtype
        self._out = torch.zeros_like(q, dtype=torch.float32)  # laid out as q: what reads the result makes no copy of it
        self._lse = torch.full(q.shape[:-1], -torch.inf, dtype=torch.float32, device=q.device)

    def add(self, block: Block, out: torch.Tensor, lse: torch.Tensor) -> None:
        """One block's result."""
        at = (block.rows, slice(None), block.queries)
        before, total = self._lse[at], torch.logaddexp(self._lse[at], lse)
        kept = self._out[at] * (before - total).exp().unsqueeze(-1)
        self._out[at] = kept.add_(out * (lse - total).exp().unsqueeze(-1))
        self._lse[at] = total

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(output, log Σ exp) of all queries."""
        return self._out.to(self._dtype), self._lse


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
