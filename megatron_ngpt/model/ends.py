"""The two ends of the network: tokens to hidden states, hidden states to logits, and the loss."""

import torch
from torch import nn

from megatron_ngpt.model.blocks import RMSNorm
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.scales import effective
from megatron_ngpt.parallel.compilation import when_called
from megatron_ngpt.parallel.head_loss import VocabularyHead
from megatron_ngpt.parallel.linear import enter_region
from megatron_ngpt.parallel.placement import parameter, place
from megatron_ngpt.parallel.products import product
from megatron_ngpt.parallel.vocabulary import HiddenParallelEmbedding, VocabularyParallelEmbedding


class Embedding(nn.Module):
    """Tokens to h [B, T, D] in the residual's dtype."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint = blueprint
        kind = {"vocab": VocabularyParallelEmbedding, "hidden": HiddenParallelEmbedding}[blueprint.model.embedding_shard]
        self.embed_tokens = kind(blueprint.parameters["model.embed_tokens.weight"], blueprint.grid.tensor, blueprint.sequence)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """h [B, T, D], or this rank's slice of the sequence."""
        return self.embed_tokens(tokens_BT).to(self.blueprint.residual_dtype)


class Head(nn.Module):
    """What both kinds share: from h to the logits of this rank's vocabulary entries, or at once to the loss. Padding is left out: a logit
    of −∞ without computing it. A kind defines `normed` and `scale`."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint, self.axis = blueprint, blueprint.grid.tensor
        self.weight = parameter(blueprint.parameters["lm_head.weight"], self.axis)
        first, self.entries = local_vocabulary(blueprint)
        self._product = when_called(product) if blueprint.compile else product
        self.losses = VocabularyHead(self.axis, first, self.weight.placement.local[0], blueprint.compile)

    def forward(self, h_BTD: torch.Tensor, targets_BT: torch.Tensor | None = None) -> torch.Tensor:
        """The logits [B, T, V] in the weight's dtype; with targets the mean loss a token, nats, an fp32 scalar."""
        x_BTD = self.enter(h_BTD)
        return self._product(x_BTD, *self.matrix()) if targets_BT is None else self.losses.mean_loss(x_BTD, *self.matrix(), targets_BT)

    def enter(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """What the head's matrix reads on every tensor rank, [B, T, D]."""
        return enter_region(self.normed(h_BTD).to(self.weight.dtype), self.axis, self.blueprint.sequence)

    def token_losses(self, h_BTD: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Each token's loss, nats, fp32 [B, T]; without gradients."""
        return self.losses.token_losses(self.enter(h_BTD), *self.matrix(), targets_BT)

    def normed(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """h as the head's matrix reads it."""
        return h_BTD

    def scale(self) -> torch.Tensor | None:
        """What the logits are multiplied by, fp32 [V]; None: 1."""
        return None

    def matrix(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and scale of the real entries; a slice's gradient would be filled up with zeros, so none where all are real."""
        scale_V = self.scale()
        if self.entries == self.weight.placement.local[0]:
            return self.weight, scale_V
        return self.weight[: self.entries], None if scale_V is None else scale_V[: self.entries]


class NormalizedHead(Head):
    """nGPT: no norm, since h is on the sphere; logits scaled by s_z."""

    def __init__(self, blueprint: Blueprint):
        super().__init__(blueprint)
        self.logit_scale = parameter(blueprint.parameters["logit_scale"], self.axis)

    def scale(self) -> torch.Tensor:
        """s_z."""
        return effective(self.logit_scale)


class BaselineHead(Head):
    """The last norm, and the logits."""

    def __init__(self, blueprint: Blueprint):
        super().__init__(blueprint)
        self.norm = RMSNorm(blueprint, "model.norm")

    def normed(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """RMSNorm(h)."""
        return self.norm(h_BTD)


def local_vocabulary(blueprint: Blueprint) -> tuple[int, int]:
    """(first entry, number of entries) of the vocabulary whose logits this tensor rank computes."""
    box = place(blueprint.parameters["lm_head.weight"], blueprint.grid.tensor)
    first = box.offset[0]
    return first, max(0, min(box.local[0], blueprint.vocabulary - first))
