"""What every layer needs to know to build itself."""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from megatron_ngpt.config.parameters import ParameterRecord, parameter_table
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.parallel.grid import RankGrid


@dataclass(frozen=True)
class Blueprint:
    """The shape of the network, where this rank stands, and how activations are kept.

    Attributes:
        model: the recipe's section.
        vocabulary: entries of the vocabulary, without padding.
        sequence: activations between blocks are split along the sequence over the tensor ranks.
        context_kind: how attention spans context ranks: `ulysses` or `ring`.
        mask_documents: layers get, and pass on, each token's document.
        recompute: `full` keeps only each block's input, `selective` what products put out; backward computes the rest.
        ffn_chunks: parts of the sequence that go through the feed-forward one after another.
        offload: what `full` keeps lies in host memory.
        compile: compile each block, the head and the loss.
    """

    model: Model
    vocabulary: int
    grid: RankGrid = field(default_factory=RankGrid)
    sequence: bool = False
    context_kind: str = "ulysses"
    mask_documents: bool = False
    recompute: str = "none"
    ffn_chunks: int = 1
    offload: bool = False
    compile: bool = False

    @property
    def residual_dtype(self) -> torch.dtype:
        """dtype of the hidden state between blocks."""
        return getattr(torch, self.model.residual_dtype)

    @cached_property
    def parameters(self) -> dict[str, ParameterRecord]:
        """Every parameter of the whole model, by name."""
        return parameter_table(self.model, self.vocabulary)
