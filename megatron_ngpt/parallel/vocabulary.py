"""The two ends of the network over tensor ranks: embedding and cross-entropy over a split vocabulary, and the embedding split along
its rows' own axis.

The vocabulary is padded so that it divides over the ranks; the padding is looked up by nobody, has no logits and is no part of the model.
Shapes: B batch, T sequence, D hidden, N = B · T tokens, V vocabulary entries here.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.regions import gather_hidden, hidden_to_sequence, reduce_from_ranks, reduce_to_sequence

_CPU_CHUNK, _DEVICE_CHUNK = 1 << 18, 1 << 26  # logits that the cross-entropy turns to fp32 at a time


class VocabularyParallelEmbedding(nn.Module):
    """Each tensor rank holds some rows; an all-reduce (or, split along the sequence, a reduce-scatter) joins what they found."""

    def __init__(self, record: ParameterRecord, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(record, axis)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        if self.axis.size == 1:
            return F.embedding(tokens_BT, self.weight)
        rows = self.weight.placement.local[0]
        local = tokens_BT - self.weight.placement.offset[0]
        elsewhere = (local < 0) | (local >= rows)
        found = F.embedding(local.masked_fill(elsewhere, 0), self.weight).masked_fill(elsewhere.unsqueeze(-1), 0)
        return (reduce_to_sequence if self.sequence else reduce_from_ranks)(found, self.axis)


class HiddenParallelEmbedding(nn.Module):
    """Each tensor rank holds a slice of every row: an all-gather of slices (or an all-to-all to slices of the sequence), no masking, an
    even load. The rows' norms are then sums over tensor ranks."""

    def __init__(self, record: ParameterRecord, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(record, axis)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        slices = F.embedding(tokens_BT, self.weight)
        return (hidden_to_sequence if self.sequence else gather_hidden)(slices, self.axis)


def cross_entropy(logits: torch.Tensor, targets_BT: torch.Tensor, axis: Axis, first: int, compiled: bool = False) -> torch.Tensor:
    """Each token's loss, fp32 [B, T], nats, from the logits [B, T, V] of the entries first .. first + V on this rank.

    Two reductions of [N] floats over the tensor ranks; logits are never gathered. `compiled`: the passes over the logits are fused.
    """
    passes = _Compiled if compiled else _Chunked
    losses = _CrossEntropy.apply(logits.flatten(0, -2), targets_BT.flatten() - first, axis, passes)
    return losses.view(targets_BT.shape)


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp(logits) − logit of the target; targets outside [0, V) are other ranks'."""

    @staticmethod
    def forward(ctx, logits_NV: torch.Tensor, targets_N: torch.Tensor, axis: Axis, passes) -> torch.Tensor:
        stats = torch.stack([passes.log_sum_exp(logits_NV), _pick(logits_NV, targets_N)])
        log_z, picked = stats if axis.size == 1 else _combine(stats, axis)
        ctx.save_for_backward(logits_NV, targets_N, log_z)
        ctx.passes = passes
        return log_z - picked

    @staticmethod
    def backward(ctx, grad_N: torch.Tensor):
        return ctx.passes.gradient(*ctx.saved_tensors, grad_N), None, None, None


def _log_sum_exp(logits_NV: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits_NV.float(), 1)


def _gradient(logits_NV: torch.Tensor, targets_N: torch.Tensor, log_z_N: torch.Tensor, grad_N: torch.Tensor) -> torch.Tensor:
    """(softmax − one-hot) · grad, in the logits' dtype."""
    soft = torch.exp(logits_NV.float() - log_z_N.unsqueeze(1))
    hit = torch.arange(logits_NV.shape[1], device=logits_NV.device) == targets_N.unsqueeze(1)
    return ((soft - hit.float()) * grad_N.unsqueeze(1)).to(logits_NV.dtype)


class _Chunked:
    """The passes over the logits, some tokens at a time so that fp32 copies stay small (on a CPU: in its cache)."""

    @staticmethod
    def log_sum_exp(logits_NV: torch.Tensor) -> torch.Tensor:
        return torch.cat([_log_sum_exp(part) for part in logits_NV.split(_tokens_at_a_time(logits_NV))])

    @staticmethod
    def gradient(logits_NV, targets_N, log_z_N, grad_N) -> torch.Tensor:
        step, found = _tokens_at_a_time(logits_NV), torch.empty_like(logits_NV)
        for start in range(0, logits_NV.shape[0], step):
            rows = slice(start, start + step)
            found[rows] = _gradient(logits_NV[rows], targets_N[rows], log_z_N[rows], grad_N[rows])
        return found


class _Compiled:
    """The passes over the logits, each one fused kernel."""

    log_sum_exp = staticmethod(torch.compile(_log_sum_exp))
    gradient = staticmethod(torch.compile(_gradient))


def _tokens_at_a_time(logits_NV: torch.Tensor) -> int:
    entries = _CPU_CHUNK if logits_NV.device.type == "cpu" else _DEVICE_CHUNK
    return max(1, entries // max(1, logits_NV.shape[1]))


def _pick(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The logits of the targets that are here, 0 for the others."""
    if logits_NV.shape[1] == 0:  # a rank whose rows are all padding
        return logits_NV.new_zeros(logits_NV.shape[:1], dtype=torch.float32)
    here = (targets_N >= 0) & (targets_N < logits_NV.shape[1])
    picked = logits_NV.gather(1, targets_N.masked_fill(~here, 0).unsqueeze(1)).squeeze(1).float()
    return torch.where(here, picked, 0)


def _combine(stats: torch.Tensor, axis: Axis) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ exp over all ranks, and the target's logit from the rank that has it."""
    log_z, picked = stats
    largest = log_z.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=axis.group)
    total = torch.stack([torch.exp(log_z - largest), picked])
    dist.all_reduce(total, group=axis.group)
    return total[0].log() + largest, total[1]
