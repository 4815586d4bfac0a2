"""Cross-entropy over a vocabulary that tensor ranks divide: two reductions of [N] floats; logits are never gathered.

Shapes: N tokens, V vocabulary entries here. Targets are counted from the first of these; those outside [0, V) are other ranks'.
"""

from functools import cache
from typing import Protocol

import torch
import torch.distributed as dist

from megatron_ngpt.parallel.compilation import when_called
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.row_parts import row_parts


class Passes(Protocol):
    """How the passes over the logits are made."""

    def log_sum_exp(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """log Σ exp of each token's logits, fp32 [N]."""

    def softmax(self, logits_NV: torch.Tensor, log_z_N: torch.Tensor, share: float) -> None:
        """Replace the logits by softmax · share."""

    def at_once(self, logits_NV: torch.Tensor, targets_N: torch.Tensor, share: float) -> torch.Tensor:
        """Each token's loss, fp32 [N], nats, of logits of the whole vocabulary, which become (softmax − one-hot) · share: one exponential
        serves both."""


def losses_and_gradient(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, share: float, axis: Axis, passes: Passes
) -> torch.Tensor:
    """The loss of each token, fp32 [N], nats; the logits become (softmax − one-hot) · share."""
    if axis.size == 1:
        return passes.at_once(logits_NV, targets_N, share)
    losses_N, log_z_N = losses(logits_NV, targets_N, axis, passes)
    if logits_NV.shape[1]:
        passes.softmax(logits_NV, log_z_N, share)
        here, places = _places(logits_NV, targets_N)
        at_targets_N1 = (torch.expm1(-losses_N) * share).to(logits_NV.dtype).unsqueeze(1)
        logits_NV.scatter_(1, places, torch.where(here.unsqueeze(1), at_targets_N1, logits_NV.gather(1, places)))
    return losses_N


def losses(logits_NV: torch.Tensor, targets_N: torch.Tensor, axis: Axis, passes: Passes) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss of each token, log Σ exp over the whole vocabulary), fp32 [N] each, nats."""
    stats = torch.stack([passes.log_sum_exp(logits_NV), _pick(logits_NV, targets_N)])
    log_z, picked = stats if axis.size == 1 else _combine(stats, axis)
    return log_z - picked, log_z


def passes(compiled: bool) -> Passes:
    """Each pass one fused kernel, or plain passes over some tokens at a time."""
    return _compiled() if compiled else _Chunked()


class _Chunked:
    """Some tokens at a time, so that fp32 copies stay small."""

    def log_sum_exp(self, logits_NV: torch.Tensor) -> torch.Tensor:
        return torch.cat([_log_sum_exp(part) for (part,) in row_parts(logits_NV)])

    def softmax(self, logits_NV: torch.Tensor, log_z_N: torch.Tensor, share: float) -> None:
        for logits, log_z in row_parts(logits_NV, log_z_N.unsqueeze(1)):
            soft = logits.float()  # of fp32 logits, these themselves
            soft.sub_(log_z).exp_().mul_(share)
            if soft is not logits:
                logits.copy_(soft)

    def at_once(self, logits_NV: torch.Tensor, targets_N: torch.Tensor, share: float) -> torch.Tensor:
        return torch.cat([self._part(logits, place, share) for logits, place in row_parts(logits_NV, targets_N.unsqueeze(1))])

    @staticmethod
    def _part(logits_NV: torch.Tensor, place_N1: torch.Tensor, share: float) -> torch.Tensor:
        soft = logits_NV.float()
        largest_N1, picked_N1 = soft.amax(1, keepdim=True), soft.gather(1, place_N1)
        total_N1 = soft.sub_(largest_N1).exp_().sum(1, keepdim=True)
        soft.mul_(share / total_N1).scatter_add_(1, place_N1, torch.full_like(total_N1, -share))
        if soft is not logits_NV:
            logits_NV.copy_(soft)
        return (largest_N1 - picked_N1 + total_N1.log()).squeeze(1)


class _Fused:
    """Each pass compiled."""

    def __init__(self):
        self.log_sum_exp, self.softmax, self.at_once = (when_called(f) for f in (_log_sum_exp, _softmax, _at_once))


_compiled = cache(_Fused)


def _log_sum_exp(logits_NV: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits_NV.float(), 1)


def _softmax(logits_NV: torch.Tensor, log_z_N: torch.Tensor, share: float) -> None:
    logits_NV.copy_(torch.exp(logits_NV.float() - log_z_N.unsqueeze(1)) * share)


def _at_once(logits_NV: torch.Tensor, targets_N: torch.Tensor, share: float) -> torch.Tensor:
    place_N1, x_NV = targets_N.unsqueeze(1), logits_NV.float()
    largest_N1, picked_N1 = x_NV.amax(1, keepdim=True), x_NV.gather(1, place_N1)
    soft = torch.exp(x_NV - largest_N1)
    total_N1 = soft.sum(1, keepdim=True)
    logits_NV.copy_(soft * (share / total_N1))  # then the targets' places, few: comparing every place with its target costs a third more
    logits_NV.scatter_(1, place_N1, (torch.exp(picked_N1 - largest_N1) * (share / total_N1) - share).to(logits_NV.dtype))
    return (largest_N1 - picked_N1 + total_N1.log()).squeeze(1)


def _pick(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The logits of the targets that are here, 0 for the others."""
    if logits_NV.shape[1] == 0:  # a rank whose rows are all padding
        return logits_NV.new_zeros(logits_NV.shape[:1], dtype=torch.float32)
    here, places = _places(logits_NV, targets_N)
    return torch.where(here, logits_NV.gather(1, places).squeeze(1).float(), 0)


def _places(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each token's target is here, [N], and where, [N, 1]; 0 for the others."""
    here = (targets_N >= 0) & (targets_N < logits_NV.shape[1])
    return here, targets_N.masked_fill(~here, 0).unsqueeze(1)


def _combine(stats: torch.Tensor, axis: Axis) -> tuple[torch.Tensor, torch.Tensor]:
    """log Σ exp over all ranks, and the target's logit from the rank that has it."""
    log_z, picked = stats
    largest = log_z.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=axis.group)
    total = torch.stack([torch.exp(log_z - largest), picked])
    dist.all_reduce(total, group=axis.group)
    return total[0].log() + largest, total[1]
