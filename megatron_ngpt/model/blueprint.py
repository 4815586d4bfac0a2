"""What every layer needs to know to build itself."""

from dataclasses import dataclass, field

import torch
from torch import nn

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.parallel.grid import RankGrid


@dataclass(frozen=True)
class Blueprint:
    """The shape of the network, where this rank stands, and how activations are kept.

    Attributes:
        model: the recipe's section.
        vocabulary: entries of the vocabulary, without padding.
        sequence: activations between blocks are split along the sequence over the tensor ranks.
        mask_documents: layers get, and pass on, each token's document.
        recompute: keep only each block's input, recompute the block in backward.
        compile: compile each block, the head and the loss.
    """

    model: Model
    vocabulary: int
    grid: RankGrid = field(default_factory=RankGrid)
    sequence: bool = False
    mask_documents: bool = False
    recompute: bool = False
    compile: bool = False

    @property
    def residual_dtype(self) -> torch.dtype:
        """dtype of the hidden state between blocks."""
        return getattr(torch, self.model.residual_dtype)


def name_parameters(module: nn.Module, prefix: str) -> None:
    """Give every parameter its name in the whole model, which no assembly or layout changes."""
    for name, parameter in module.named_parameters():
        parameter.full_name = f"{prefix}{name}"
