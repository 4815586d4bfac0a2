"""One layer list, and its assembly as a plain module; `pipeline.py` assembles the same list over stages."""

from collections.abc import Iterable

import torch
from torch import nn

from megatron_ngpt.model.blocks import BaselineBlock, Block, NormalizedBlock
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.ends import BaselineHead, Embedding, NormalizedHead
from megatron_ngpt.model.window import Window, window_of

Layer = tuple[type[nn.Module], tuple]  # a kind of layer and what its constructor takes


def layer_list(blueprint: Blueprint) -> list[Layer]:
    """Embedding, blocks, head, in order."""
    block, head = {"ngpt": (NormalizedBlock, NormalizedHead), "gpt": (BaselineBlock, BaselineHead)}[blueprint.model.arch]
    blocks = [(block, (blueprint, number)) for number in range(blueprint.model.layers)]
    return [(Embedding, (blueprint,)), *blocks, (head, (blueprint,))]


class Decoder(nn.Module):
    """The network as a plain module: all of it, or `part` of the layer list (inference over pipeline stages)."""

    def __init__(self, blueprint: Blueprint, part: slice = slice(None)):
        super().__init__()
        self.blueprint = blueprint
        self.layers = nn.ModuleList(kind(*arguments) for kind, arguments in layer_list(blueprint)[part])

    def forward(self, batch, targets_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, T, V] of this tensor rank's vocabulary entries, or with targets the mean loss a token, from tokens [B, T] of this
        context rank's positions (under `mask`: (tokens, documents of all positions))."""
        tokens_BT, documents_BT = batch if self.blueprint.mask_documents else (batch, None)
        *body, head = self.layers
        h_BTD = run_layers(body, tokens_BT, window_of(self.blueprint, tokens_BT.shape[1], documents_BT, self))
        return head(h_BTD, targets_BT)


def run_layers(layers: Iterable[nn.Module], x: torch.Tensor, window: Window) -> torch.Tensor:
    """Tokens [B, T] or hidden states [B, T, D] through embedding and blocks, or some of them, in order."""
    for layer in layers:
        x = layer(x, window) if isinstance(layer, Block) else layer(x)
    return x
