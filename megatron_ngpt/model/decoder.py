"""One layer list, and its assembly as a plain module; `pipeline.py` assembles the same list over stages."""

import torch
from torch import nn

from megatron_ngpt.model.blocks import BaselineBlock, NormalizedBlock
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.ends import Embedding, Head

Layer = tuple[type[nn.Module], tuple]  # a kind of layer and what its constructor takes


def layer_list(blueprint: Blueprint) -> list[Layer]:
    """Embedding, blocks, head, in order."""
    block = {"ngpt": NormalizedBlock, "gpt": BaselineBlock}[blueprint.model.arch]
    blocks = [(block, (blueprint, number)) for number in range(blueprint.model.layers)]
    return [(Embedding, (blueprint,)), *blocks, (Head, (blueprint,))]


class Decoder(nn.Module):
    """The network as a plain module: all of it, or `part` of the layer list (inference over pipeline stages)."""

    def __init__(self, blueprint: Blueprint, part: slice = slice(None)):
        super().__init__()
        self.blueprint = blueprint
        self.layers = nn.ModuleList(kind(*arguments) for kind, arguments in layer_list(blueprint)[part])

    def forward(self, batch) -> torch.Tensor:
        """Logits [B, T, V] of this tensor rank's vocabulary entries, from tokens [B, T] (or (tokens, documents) under `mask`)."""
        state = batch
        for layer in self.layers:
            state = layer(state)
        return state
