"""Head and loss together, some tokens at a time: the logits of a micro-batch are never there at once.

For each chunk of tokens: its logits, log Σ exp, and at once, written over the logits, their gradient and its two products. So training
makes no product twice, and keeps nothing for backward but the gradients. Where tensor ranks divide the vocabulary a chunk costs two
small reductions. Shapes: B batch, T sequence, N = B · T tokens, D hidden, V vocabulary entries here.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch

from megatron_ngpt.config.costs.memory import LOGITS_AT_ONCE
from megatron_ngpt.parallel import cross_entropy
from megatron_ngpt.parallel.compilation import when_called
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.products import fold, input_gradient, outputs, unfold_gradient, weight_gradient


class VocabularyHead:
    """The losses of logits scale ∘ (W x), whose entries tensor ranks divide.

    Args:
        axis: those ranks.
        first: the first entry here.
        widest: entries of the rank that has most: all ranks take the same tokens at a time.
        compiled: the passes over the logits and over the weight are fused.

    Attributes:
        kept: where it is a list, training appends each micro-batch's loss of every token, fp32 [N] without gradients.
    """

    def __init__(self, axis: Axis, first: int, widest: int, compiled: bool):
        self.axis, self.first, self.passes = axis, first, cross_entropy.passes(compiled)
        self.compiled = compiled
        self._tokens = max(1, LOGITS_AT_ONCE // widest)
        self.kept: list[torch.Tensor] | None = None

    def mean_loss(
        self, x_BTD: torch.Tensor, weight_VD: torch.Tensor, scale_V: torch.Tensor | None, targets_BT: torch.Tensor
    ) -> torch.Tensor:
        """The mean loss a token, nats, an fp32 scalar; `scale` None: 1."""
        if not torch.is_grad_enabled():
            return self.token_losses(x_BTD, weight_VD, scale_V, targets_BT).mean()
        return _MeanLoss.apply(x_BTD.flatten(0, -2), weight_VD, scale_V, targets_BT.flatten() - self.first, self)

    @torch.no_grad()
    def token_losses(
        self, x_BTD: torch.Tensor, weight_VD: torch.Tensor, scale_V: torch.Tensor | None, targets_BT: torch.Tensor
    ) -> torch.Tensor:
        """Each token's loss, nats, fp32 [B, T]; without gradients."""
        folded = self.over_weight(fold, scale_V)(weight_VD, scale_V)
        chunks = self.chunks(x_BTD.flatten(0, -2), targets_BT.flatten() - self.first)
        return torch.cat([self.losses(outputs(x, folded, False), targets)[0] for x, targets in chunks]).view(targets_BT.shape)

    def losses(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `cross_entropy.losses`, on this head's ranks; targets counted from `first`."""
        return cross_entropy.losses(logits_NV, targets_N, self.axis, self.passes)

    def chunks(self, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """The tensors' parts of as many tokens as `LOGITS_AT_ONCE` allows, side by side."""
        return zip(*(tensor.split(self._tokens) for tensor in tensors), strict=True)

    def over_weight(self, function: Callable, scale_V: torch.Tensor | None) -> Callable:
        """`fold` or `unfold_gradient` as this head runs it. Dynamo leaves a function alone for good once it finds nothing in it to compile,
        as where there is no scale."""
        return _fused(function) if self.compiled and scale_V is not None else function


_fused = cache(when_called)


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND, weight_VD, scale_V, targets_N, head: VocabularyHead) -> torch.Tensor:
        folded, share, found = head.over_weight(fold, scale_V)(weight_VD, scale_V), 1 / len(x_ND), []
        total, grad_x_ND, grad_folded = torch.zeros((), device=x_ND.device), torch.empty_like(x_ND), None
        for x, targets, grad_x in head.chunks(x_ND, targets_N, grad_x_ND):
            logits = outputs(x, folded, False)
            losses = cross_entropy.losses_and_gradient(logits, targets, share, head.axis, head.passes)
            found.append(losses)
            total += losses.sum()
            grad_x.copy_(input_gradient(logits, folded, False))
            part = weight_gradient(logits, x, False)
            if len(x) == len(x_ND):
                grad_folded = part
            else:  # the sum of many chunks, in fp32
                grad_folded = part.float() if grad_folded is None else grad_folded.add_(part)
            del logits  # before the next ones are made
        if head.kept is not None:
            head.kept.append(torch.cat(found))
        ctx.save_for_backward(grad_x_ND, *head.over_weight(unfold_gradient, scale_V)(grad_folded, weight_VD, scale_V))
        return total * share

    @staticmethod
    def backward(ctx, grad):
        """The gradients wait, and are used once: they are scaled where they lie."""
        return *(None if waiting is None else waiting.mul_(grad) for waiting in ctx.saved_tensors), None, None
