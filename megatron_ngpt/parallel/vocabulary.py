"""The two ends of the network over tensor ranks: embedding and cross-entropy over a split vocabulary, and the embedding split along
its rows' own axis.

The vocabulary is padded so that it divides over the ranks; the padding is looked up by nobody, has no logits and is no part of the model.
Shapes: B batch, T sequence, D hidden, N = B · T tokens, V vocabulary entries here.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter, place
from megatron_ngpt.parallel.regions import gather_hidden, hidden_to_sequence, reduce_from_ranks, reduce_to_sequence

_CHUNK_ENTRIES = 1 << 22  # logits that the cross-entropy turns to fp32 at a time


def padded(vocabulary: int, axis: Axis) -> int:
    """The smallest multiple of the axis' size that holds the vocabulary."""
    return -(-vocabulary // axis.size) * axis.size


class VocabularyParallelEmbedding(nn.Module):
    """Each tensor rank holds some rows; an all-reduce (or, split along the sequence, a reduce-scatter) joins what they found."""

    def __init__(self, vocabulary: int, hidden: int, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(place((vocabulary, hidden), axis, dim=0, padded=padded(vocabulary, axis)), axis)

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

    def __init__(self, vocabulary: int, hidden: int, axis: Axis, sequence: bool):
        super().__init__()
        self.axis, self.sequence = axis, sequence
        self.weight = parameter(place((vocabulary, hidden), axis, dim=1), axis)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        slices = F.embedding(tokens_BT, self.weight)
        return (hidden_to_sequence if self.sequence else gather_hidden)(slices, self.axis)


def cross_entropy(logits: torch.Tensor, targets_BT: torch.Tensor, axis: Axis, first: int) -> torch.Tensor:
    """Each token's loss, fp32 [B, T], nats, from the logits [B, T, V] of the entries first .. first + V on this rank.

    Two reductions of [N] floats over the tensor ranks; logits are never gathered.
    """
    losses = _CrossEntropy.apply(logits.flatten(0, -2), targets_BT.flatten() - first, axis)
    return losses.view(targets_BT.shape)


class _CrossEntropy(torch.autograd.Function):
    """log Σ exp(logits) − logit of the target, in chunks of tokens so that fp32 copies stay small."""

    @staticmethod
    def forward(ctx, logits_NV: torch.Tensor, targets_N: torch.Tensor, axis: Axis) -> torch.Tensor:
        here = (targets_N >= 0) & (targets_N < logits_NV.shape[1])
        stats = torch.stack([_log_sum_exp(logits_NV), _pick(logits_NV, targets_N, here)])
        log_z, picked = stats if axis.size == 1 else _combine(stats, axis)
        ctx.save_for_backward(logits_NV, targets_N, here, log_z)
        return log_z - picked

    @staticmethod
    def backward(ctx, grad_N: torch.Tensor):
        logits_NV, targets_N, here, log_z = ctx.saved_tensors
        grad = torch.empty_like(logits_NV)
        for rows in _chunks(logits_NV):
            soft = torch.exp(logits_NV[rows].float() - log_z[rows, None]).mul_(grad_N[rows, None])
            if soft.shape[1]:
                hit = torch.where(here[rows], -grad_N[rows], 0)
                soft.scatter_add_(1, targets_N[rows].masked_fill(~here[rows], 0).unsqueeze(1), hit.unsqueeze(1))
            grad[rows] = soft
        return grad, None, None


def _chunks(logits_NV: torch.Tensor) -> list[slice]:
    tokens, entries = logits_NV.shape
    step = max(1, _CHUNK_ENTRIES // max(1, entries))
    return [slice(i, i + step) for i in range(0, tokens, step)]


def _log_sum_exp(logits_NV: torch.Tensor) -> torch.Tensor:
    if logits_NV.shape[1] == 0:  # a rank whose rows are all padding
        return logits_NV.new_full(logits_NV.shape[:1], -torch.inf, dtype=torch.float32)
    return torch.cat([torch.logsumexp(logits_NV[rows].float(), 1) for rows in _chunks(logits_NV)])


def _pick(logits_NV: torch.Tensor, targets_N: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    if logits_NV.shape[1] == 0:
        return logits_NV.new_zeros(logits_NV.shape[:1], dtype=torch.float32)
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
