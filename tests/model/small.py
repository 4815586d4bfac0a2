"""Small models on this rank, filled as training fills them, with scales and norms that differ entry by entry."""

import torch

from megatron_ngpt.config.parameters import Constant
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser

SHAPE = {"layers": 2, "hidden": 24, "heads": 4, "kv_heads": 2, "ffn": 40, "context": 16}
VOCABULARY = 37


def blueprint(arch: str = "ngpt", vocabulary: int = VOCABULARY, options: dict | None = None, **model) -> Blueprint:
    """A blueprint of the small shape; `options` are Blueprint's own, the rest the recipe's model keys."""
    return Blueprint(Model(arch=arch, **{**SHAPE, **model}), vocabulary, **(options or {}))


def trained(plan: Blueprint, seed: int = 0, spread: float = 0.3) -> Decoder:
    """The step-0 model with vectors pushed off their start by a factor 1 ± spread, as if trained for a while."""
    module = Decoder(plan)
    shards = shards_of(module)
    initialise(shards, seed)
    Renormaliser(shards, RankGrid()).renormalise()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if isinstance(parameter.placement.record.start, Constant):
                parameter.mul_(1 + spread * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return module


def tokens(batch: int, length: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """Random tokens [batch, length]."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))
