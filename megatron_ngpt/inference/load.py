"""A trained model at work, from a run directory, a checkpoint or an exported directory: whole in one process, or divided over ranks."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from megatron_ngpt.checkpoint.catalogue import from_checkpoint
from megatron_ngpt.checkpoint.dcp import load
from megatron_ngpt.checkpoint.export import model_of_state
from megatron_ngpt.checkpoint.exported import CONFIG, TOKENIZER, model_of, read_config
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.config.costs.stages import stages_of
from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.config.rules import rotation_problems
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import CheckpointError, ConfigError
from megatron_ngpt.inference.ranks import check_layout, context_kind
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.device import choose_device
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import shards_of
from megatron_ngpt.parallel.together import from_first_rank, together


@dataclass(frozen=True)
class LoadedModel:
    """A model, or this rank's part of it, ready to compute in fp32.

    Attributes:
        module: from tokens int64 [B, T] (with `mask_documents`, tokens and document numbers) to logits [B, T, V]; on a pipeline
            stage, that stage's layers.
        vocabulary: entries of the vocabulary, V.
        boundaries: the recipe's `data.document_boundaries`.
        tokenizer_path: where the SentencePiece model should be; None if none is known.
    """

    module: Decoder
    model: Model
    vocabulary: int
    boundaries: str
    tokenizer_path: Path | None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    @property
    def grid(self) -> RankGrid:
        """The ranks that the model is divided over."""
        return self.module.blueprint.grid

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a DataError or ConfigError if its file is not there."""
        if self.tokenizer_path is None:
            raise ConfigError("MODEL: no tokenizer.model beside it; put the SentencePiece model there")
        return Tokenizer(str(self.tokenizer_path))

    def scaled(self, scaling: RopeScaling | None) -> "LoadedModel":
        """The same parameters with their rotary embedding scaled anew, as in `load_model`."""
        model = _stretched(self.model, scaling)
        module = decoder_of(replace(self.module.blueprint, model=model), self.module)
        return replace(self, module=module, model=model)


def load_model(
    path: Path, mask_documents: bool | None = False, grid: RankGrid | None = None, scaling: RopeScaling | None = None
) -> LoadedModel:
    """The model at `path`, on the GPU if there is one (collective over the grid; each rank reads its part alone).

    Args:
        path: a run directory (its newest good checkpoint), a checkpoint directory or an exported directory.
        mask_documents: the module keeps documents apart; None: as in training.
        grid: the ranks that share the model; None: this process.
        scaling: of the rotary embedding in place of the model's own, for a longer context; a yarn that does not say from which context
            on goes from the model's.

    Raises:
        ConfigError: there is no model at `path`, it does not divide over the grid, or the scaling does not fit it.
        CheckpointError: there is one, and it is damaged.
    """
    grid = grid or RankGrid()
    if (path / CONFIG).is_file():
        return _load_exported(path, mask_documents, grid, scaling)
    return from_checkpoint(path, "MODEL", lambda found: _load_checkpoint(found, mask_documents, grid, scaling))


def _load_checkpoint(path: Path, mask_documents: bool | None, grid: RankGrid, scaling: RopeScaling | None) -> LoadedModel:
    _check_same(path)
    state = read_state(path)
    boundaries, tokenizer = state["recipe"]["data"]["document_boundaries"], path / TOKENIZER
    module = _build(_stretched(model_of_state(state), scaling), state["vocabulary"], _masks(mask_documents, boundaries), grid)
    load(path, shards_of(module))
    return LoadedModel(module, module.blueprint.model, state["vocabulary"], boundaries, tokenizer if tokenizer.is_file() else None)


def _load_exported(path: Path, mask_documents: bool | None, grid: RankGrid, scaling: RopeScaling | None) -> LoadedModel:
    config = read_config(path, "MODEL")
    boundaries, tokenizer = config.get("document_boundaries", "ignore"), path / TOKENIZER
    model = model_of(config, "MODEL")
    module = _build(_stretched(model, scaling), model.vocab, _masks(mask_documents, boundaries), grid)
    load_initial(path, shards_of(module), replace(module.blueprint, model=model), key="MODEL")
    return LoadedModel(module, module.blueprint.model, model.vocab, boundaries, tokenizer if tokenizer.is_file() else None)


def _stretched(model: Model, scaling: RopeScaling | None) -> Model:
    """The model with this scaling of its rotary embedding."""
    if scaling is None:
        return model
    if scaling.kind == "yarn" and scaling.original_context is None:
        scaling = scaling.model_copy(update={"original_context": model.rope_scaling.original_context or model.context})
    model = model.model_copy(update={"rope_scaling": scaling})
    if problems := list(rotation_problems(model)):
        raise ConfigError(*problems)
    return model


def _check_same(path: Path) -> None:
    """A run that goes on may save and remove checkpoints just now, so that ranks find different ones."""
    first = from_first_rank(lambda: path, "MODEL")

    def compare() -> None:
        if path != first:
            raise CheckpointError(f"the newest checkpoint was {first} and then {path}; start again")

    together(compare, "MODEL")


def _masks(mask_documents: bool | None, boundaries: str) -> bool:
    return boundaries == "mask" if mask_documents is None else mask_documents


def _build(model: Model, vocabulary: int, mask_documents: bool, grid: RankGrid) -> Decoder:
    check_layout(model, grid)
    blueprint = Blueprint(model, vocabulary, grid, context_kind=context_kind(model, grid), mask_documents=mask_documents)
    with choose_device():
        return Decoder(blueprint, stage_of(blueprint)).eval()


def decoder_of(blueprint: Blueprint, module: nn.Module) -> Decoder:
    """This rank's layers of the blueprint over the parameters that `module` has by the same names, without a copy."""
    held = {parameter.placement.record.name: parameter for parameter in module.parameters()}
    with torch.device("meta"):
        decoder = Decoder(blueprint, stage_of(blueprint)).eval()
    for part in decoder.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = held[parameter.placement.record.name]
    return decoder


def stage_of(blueprint: Blueprint) -> slice:
    """The layers of this rank's pipeline stage, divided as in training."""
    axis = blueprint.grid.pipeline
    bounds = stages_of(blueprint.model, blueprint.vocabulary, axis.size)
    return slice(bounds[axis.rank], bounds[axis.after])
