"""`ngpt export`: a checkpoint as safetensors, with the names and shapes that others read."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from megatron_ngpt.checkpoint.catalogue import find_checkpoint
from megatron_ngpt.checkpoint.dcp import StoredTensors
from megatron_ngpt.checkpoint.exported import CONFIG, INDEX, TENSORS, TOKENIZER, effective_factor, is_turned, make_config
from megatron_ngpt.checkpoint.files import PARTIAL, remove, sync_directory
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import CheckpointError, ConfigError

SHARD_BYTES = 5 * 10**9


def export(source: Path, directory: Path, dtype: str = "float32", shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of a run or checkpoint directory to `directory`, which appears when it is complete.

    Matrices in `Linear` layout without vocabulary padding, scales as effective values, all in `dtype` (float32 or bfloat16).
    Larger than `shard_bytes`, the tensors are divided over files with an index; one file's tensors are in memory at a time.

    Raises:
        ConfigError: the source is no checkpoint, the tokenizer is gone, or there is something at `directory` already.
        CheckpointError: the source is damaged, or the directory cannot be written.
    """
    if (source / CONFIG).is_file():
        raise ConfigError(f"MODEL: {source} is exported already; valid is a run directory or a checkpoint")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"OUT_DIR: {directory} exists; valid is a new name or an empty directory")
    stored = StoredTensors(find_checkpoint(source, "MODEL"))
    model, tokenizer = model_of_state(stored.state), tokenizer_of_state(stored.state)
    partial = directory.with_name(directory.name + PARTIAL)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        _write_tensors(stored, model, partial, getattr(torch, dtype), shard_bytes)
        if tokenizer is not None:
            shutil.copyfile(tokenizer.path, partial / TOKENIZER)
        boundaries = stored.state["recipe"]["data"]["document_boundaries"]
        config = make_config(model, stored.state["vocabulary"], dtype, tokenizer and tokenizer.eos_id, boundaries)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        sync_directory(partial)
        os.rename(partial, directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"export to {directory} could not be written: {error.strerror or error}") from error


def model_of_state(state: dict) -> Model:
    """The model section of the recipe that a checkpoint was trained with."""
    try:
        return Model.model_validate(state["recipe"]["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"the checkpoint's recipe cannot be read: {str(error).splitlines()[0]}") from None


def tokenizer_of_state(state: dict) -> Tokenizer | None:
    """The tokenizer that a checkpoint was trained with, from where it lay then."""
    return Tokenizer(state["tokenizer"]) if state.get("tokenizer") else None


def exported_values(stored: torch.Tensor, model: Model, name: str) -> torch.Tensor:
    """A stored parameter as it is exported, fp32."""
    if is_turned(name):
        return stored.t().contiguous()
    factor = effective_factor(model, name)
    if factor is None:
        return stored
    effective = stored * factor
    return effective.abs() if name.endswith(".alpha") else effective


def _write_tensors(stored: StoredTensors, model: Model, directory: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    shards = list(_divide(stored, dtype.itemsize, shard_bytes))
    weight_map, total = {}, 0
    for number, names in enumerate(shards, 1):
        tensors = {name: exported_values(stored.read(name), model, name).to(dtype) for name in names}
        file = TENSORS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        with open(directory / file, "rb") as written:
            os.fsync(written.fileno())
        weight_map |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _divide(stored: StoredTensors, itemsize: int, shard_bytes: int) -> Iterator[list[str]]:
    """Names in order, in lists of at most `shard_bytes` (or of one tensor)."""
    names, size = [], 0
    for name in sorted(stored.names):
        nbytes = itemsize * torch.Size(stored.shape(name)).numel()
        if names and size + nbytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names
