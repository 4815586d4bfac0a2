"""The two ends of the network: tokens to hidden states, hidden states to logits, and the loss."""

import torch
from torch import nn

from megatron_ngpt.model.blocks import RMSNorm
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.scales import effective
from megatron_ngpt.parallel.linear import enter_region
from megatron_ngpt.parallel.placement import parameter
from megatron_ngpt.parallel.products import product
from megatron_ngpt.parallel.vocabulary import HiddenParallelEmbedding, VocabularyParallelEmbedding, cross_entropy


class Embedding(nn.Module):
    """Tokens to h [B, T, D] in the residual's dtype."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint = blueprint
        kind = {"vocab": VocabularyParallelEmbedding, "hidden": HiddenParallelEmbedding}[blueprint.model.embedding_shard]
        self.embed_tokens = kind(blueprint.parameters["model.embed_tokens.weight"], blueprint.grid.tensor, blueprint.sequence)

    def forward(self, batch):
        """(tokens [B, T], documents [B, T]), or tokens alone where documents are not masked; h takes the tokens' place."""
        tokens_BT, documents_BT = batch if self.blueprint.mask_documents else (batch, None)
        h_BTD = self.embed_tokens(tokens_BT).to(self.blueprint.residual_dtype)
        return (h_BTD, documents_BT) if self.blueprint.mask_documents else h_BTD


class Head(nn.Module):
    """h to the logits [B, T, V] of this rank's vocabulary entries, padding left out: a logit of −∞ without computing it."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint = blueprint
        self._product = torch.compile(product) if blueprint.compile else product
        record, axis = blueprint.parameters, blueprint.grid.tensor
        if blueprint.model.arch == "gpt":
            self.norm = RMSNorm(blueprint, "model.norm")
        self.weight = parameter(record["lm_head.weight"], axis)
        if blueprint.model.arch == "ngpt":
            self.logit_scale = parameter(record["logit_scale"], axis)

    def forward(self, state) -> torch.Tensor:
        """Logits in the weight's dtype."""
        h_BTD = state[0] if self.blueprint.mask_documents else state
        if self.blueprint.model.arch == "gpt":
            h_BTD = self.norm(h_BTD)
        x_BTD = enter_region(h_BTD.to(self.weight.dtype), self.blueprint.grid.tensor, self.blueprint.sequence)
        real = local_vocabulary(self.blueprint)[1]
        scale = effective(self.logit_scale)[:real] if self.blueprint.model.arch == "ngpt" else None
        return self._product(x_BTD, self.weight[:real], scale)


def local_vocabulary(blueprint: Blueprint) -> tuple[int, int]:
    """(first entry, number of entries) of the vocabulary whose logits this tensor rank computes."""
    axis = blueprint.grid.tensor
    here = blueprint.parameters["lm_head.weight"].local_shape(axis.size)[0]
    first = axis.rank * here
    return first, max(0, min(here, blueprint.vocabulary - first))


class Loss:
    """Mean loss a token, nats; DeepSpeed's pipeline calls it on the last stage's (logits, targets [B, T])."""

    def __init__(self, blueprint: Blueprint):
        self.axis, self.compiled = blueprint.grid.tensor, blueprint.compile
        self.first = local_vocabulary(blueprint)[0]

    def __call__(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits_BTV, targets_BT, self.axis, self.first, self.compiled).mean()
