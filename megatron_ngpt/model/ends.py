"""The two ends of the network: tokens to hidden states, hidden states to logits, and the loss."""

import torch
from torch import nn

from megatron_ngpt.model.blocks import RMSNorm
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.scales import effective
from megatron_ngpt.parallel.linear import enter_region
from megatron_ngpt.parallel.placement import parameter, place
from megatron_ngpt.parallel.products import product
from megatron_ngpt.parallel.vocabulary import HiddenParallelEmbedding, VocabularyParallelEmbedding, cross_entropy


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
    """What both kinds share: h to the logits [B, T, V] of this rank's vocabulary entries, in the weight's dtype, padding left out: a
    logit of −∞ without computing it."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint, self.axis = blueprint, blueprint.grid.tensor
        self.weight = parameter(blueprint.parameters["lm_head.weight"], self.axis)
        self.entries = local_vocabulary(blueprint)[1]
        self._product = torch.compile(product) if blueprint.compile else product

    def logits(self, h_BTD: torch.Tensor, scale_V: torch.Tensor | None) -> torch.Tensor:
        """scale ∘ (W h)."""
        x_BTD = enter_region(h_BTD.to(self.weight.dtype), self.axis, self.blueprint.sequence)
        return self._product(x_BTD, self.weight[: self.entries], scale_V)


class NormalizedHead(Head):
    """nGPT: no norm, since h is on the sphere; logits scaled by s_z."""

    def __init__(self, blueprint: Blueprint):
        super().__init__(blueprint)
        self.logit_scale = parameter(blueprint.parameters["logit_scale"], self.axis)

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """s_z ∘ (W h)."""
        return self.logits(h_BTD, effective(self.logit_scale)[: self.entries])


class BaselineHead(Head):
    """The last norm, and the logits."""

    def __init__(self, blueprint: Blueprint):
        super().__init__(blueprint)
        self.norm = RMSNorm(blueprint, "model.norm")

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        """W RMSNorm(h)."""
        return self.logits(self.norm(h_BTD), None)


def local_vocabulary(blueprint: Blueprint) -> tuple[int, int]:
    """(first entry, number of entries) of the vocabulary whose logits this tensor rank computes."""
    box = place(blueprint.parameters["lm_head.weight"], blueprint.grid.tensor)
    first = box.offset[0]
    return first, max(0, min(box.local[0], blueprint.vocabulary - first))


class Loss:
    """Mean loss a token, nats; DeepSpeed's pipeline calls it on the last stage's (logits, targets [B, T])."""

    def __init__(self, blueprint: Blueprint):
        self.axis, self.compiled = blueprint.grid.tensor, blueprint.compile
        self.first = local_vocabulary(blueprint)[0]

    def __call__(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits_BTV, targets_BT, self.axis, self.first, self.compiled).mean()
