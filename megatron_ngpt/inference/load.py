"""A trained model in one process, from a run directory, a checkpoint or an exported directory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_ngpt.checkpoint.catalogue import find_checkpoint
from megatron_ngpt.checkpoint.dcp import load
from megatron_ngpt.checkpoint.export import model_of_state
from megatron_ngpt.checkpoint.exported import CONFIG, TOKENIZER, model_of, read_config
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.shards import shards_of


@dataclass(frozen=True)
class LoadedModel:
    """A model, ready to compute in fp32.

    Attributes:
        module: from tokens int64 [B, T] (with `mask_documents`, tokens and document numbers) to logits [B, T, V].
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

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a DataError or ConfigError if its file is not there."""
        if self.tokenizer_path is None:
            raise ConfigError("MODEL: no tokenizer.model beside it; put the SentencePiece model there")
        return Tokenizer(str(self.tokenizer_path))


def load_model(path: Path, mask_documents: bool | None = False) -> LoadedModel:
    """The model at `path`, on the GPU if there is one.

    Args:
        path: a run directory (its newest complete checkpoint), a checkpoint directory or an exported directory.
        mask_documents: the module keeps documents apart; None: as in training.

    Raises:
        ConfigError: there is no model at `path`.
        CheckpointError: there is one, and it is damaged.
    """
    if (path / CONFIG).is_file():
        return _load_exported(path, mask_documents)
    return _load_checkpoint(find_checkpoint(path, "MODEL"), mask_documents)


def _load_checkpoint(path: Path, mask_documents: bool | None) -> LoadedModel:
    state = read_state(path)
    boundaries, tokenizer = state["recipe"]["data"]["document_boundaries"], state.get("tokenizer")
    module = _build(model_of_state(state), state["vocabulary"], _masks(mask_documents, boundaries))
    load(path, shards_of(module))
    return LoadedModel(module, module.blueprint.model, state["vocabulary"], boundaries, Path(tokenizer) if tokenizer else None)


def _load_exported(path: Path, mask_documents: bool | None) -> LoadedModel:
    config = read_config(path, "MODEL")
    boundaries, tokenizer = config.get("document_boundaries", "ignore"), path / TOKENIZER
    model = model_of(config, "MODEL")
    module = _build(model, model.vocab, _masks(mask_documents, boundaries))
    load_initial(path, shards_of(module), module.blueprint, key="MODEL")
    return LoadedModel(module, model, model.vocab, boundaries, tokenizer if tokenizer.is_file() else None)


def _masks(mask_documents: bool | None, boundaries: str) -> bool:
    return boundaries == "mask" if mask_documents is None else mask_documents


def _build(model: Model, vocabulary: int, mask_documents: bool) -> Decoder:
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return Decoder(Blueprint(model, vocabulary, mask_documents=mask_documents)).eval()
