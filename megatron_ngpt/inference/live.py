"""A model in training as inference sees it: its own parameters, without a copy, in whatever layout they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.inference.load import LoadedModel, decoder_of
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.parallel.grid import ALONE


@dataclass(frozen=True)
class LiveModel(LoadedModel):
    """A model in training; the tokenizer is the one that the run has open, whatever became of its file."""

    opened: Tokenizer

    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.opened


def live_model(module: nn.Module, blueprint: Blueprint, recipe: Recipe, tokenizer: Tokenizer) -> LiveModel:
    """The model whose parameters on this rank are those of `module`, which is trained as `blueprint` says; in their dtype.

    It computes as inference does, whatever of recomputation, compilation and split sequences training uses. Context ranks work each for
    themselves, and find the same. Under ZeRO-3 each layer is gathered as it is used, so all ranks work in step and on the same text.
    """
    cut = any(hasattr(parameter, "ds_id") for parameter in module.parameters())
    grid = replace(blueprint.grid, context=ALONE)
    if cut:
        grid = replace(grid, data=ALONE, readers=ALONE, model=grid.world)
    plain = Blueprint(blueprint.model, blueprint.vocabulary, grid)
    decoder = decoder_of(plain, module)
    if cut:
        for layer in decoder.layers:
            _gather_when_used(layer)
    boundaries, path = recipe.data.document_boundaries, Path(recipe.data.tokenizer)
    return LiveModel(decoder, plain.model, plain.vocabulary, boundaries, path, tokenizer)


def _gather_when_used(layer: nn.Module) -> None:
    """Let every method by which inference calls a layer have its whole parameters."""
    parameters = list(layer.parameters())
    for name in ("step", "forward"):
        if method := getattr(layer, name, None):

            def gathering(*arguments, method=method):
                with _gathered(parameters):
                    return method(*arguments)

            setattr(layer, name, gathering)


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Whole parameters, in tensors that training can use again; those that DeepSpeed holds whole just now are left to it, which counts
    them."""
    missing = [parameter for parameter in parameters if parameter.ds_status != ZeroParamStatus.AVAILABLE]
    gathering = deepspeed.zero.GatheredParameters(missing)
    with torch.inference_mode(False), torch.no_grad():
        gathering.__enter__()
    try:
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            gathering.__exit__(None, None, None)
