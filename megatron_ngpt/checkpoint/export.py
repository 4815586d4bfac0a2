"""`ngpt export`: a checkpoint as safetensors, with the names, the code and the tokenizer with which others read it."""

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from megatron_ngpt.checkpoint.catalogue import from_checkpoint
from megatron_ngpt.checkpoint.dcp import StoredTensors
from megatron_ngpt.checkpoint.exported import CONFIG, GENERATION, INDEX, TENSORS, TOKENIZER, make_config
from megatron_ngpt.checkpoint.exported_tensors import write_tensors
from megatron_ngpt.checkpoint.files import PARTIAL, remove, sync_directory
from megatron_ngpt.checkpoint.hub.code import MODEL, copy_code
from megatron_ngpt.checkpoint.hub.tokenizer import special_ids, write_tokenizer
from megatron_ngpt.config.parameters import ParameterRecord, parameter_table
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import CheckpointError, ConfigError

SHARD_BYTES = 5 * 10**9
BLOCK_ENTRIES = 1 << 20  # of a tensor, turned and rounded at a time


def export(source: Path, directory: Path, dtype: str = "float32", shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of a run or checkpoint directory to `directory`, which appears when it is complete.

    Matrices in `Linear` layout without vocabulary padding, scales as effective values, all in `dtype` (float32 or bfloat16).
    Larger than `shard_bytes`, the tensors are divided over files with an index; one tensor is in memory at a time.

    Raises:
        ConfigError: the source is no checkpoint, or there is something at `directory` already.
        CheckpointError: the source is damaged, or the directory cannot be written.
    """
    if (source / CONFIG).is_file():
        raise ConfigError(f"MODEL: {source} is exported already; valid is a run directory or a checkpoint")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"OUT_DIR: {directory} exists; valid is a new name or an empty directory")
    unfinished = directory.with_name(directory.name + PARTIAL)
    try:
        from_checkpoint(source, "MODEL", partial(_fill, directory=unfinished, dtype=dtype, shard_bytes=shard_bytes))
        os.rename(unfinished, directory)
        sync_directory(directory.absolute().parent)
    except OSError as error:
        raise CheckpointError(f"export to {directory} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(checkpoint: Path, directory: Path, dtype: str, shard_bytes: int) -> None:
    """Write everything of an export."""
    stored = StoredTensors(checkpoint)
    state, model, tokenizer = stored.state, model_of_state(stored.state), tokenizer_of(checkpoint)
    remove(directory)
    directory.mkdir(parents=True)
    config = make_config(model, state["vocabulary"], dtype, special_ids(tokenizer), state["recipe"]["data"]["document_boundaries"])
    _write_json(directory / CONFIG, config)
    if model.arch == "ngpt":
        copy_code(MODEL, directory)
    if tokenizer is not None:
        write_tokenizer(tokenizer, directory, model.context)
        _write_json(directory / GENERATION, _generation(tokenizer, state["vocabulary"]))
    _write_shards(stored, model, directory, getattr(torch, dtype), shard_bytes)
    _sync_files(directory)


def model_of_state(state: dict) -> Model:
    """The model section of the recipe that a checkpoint was trained with."""
    try:
        return Model.model_validate(state["recipe"]["model"])
    except (KeyError, TypeError, ValidationError) as error:
        raise CheckpointError(f"the checkpoint's recipe cannot be read: {str(error).splitlines()[0]}") from None


def tokenizer_of(checkpoint: Path) -> Tokenizer | None:
    """The tokenizer that lies in a checkpoint."""
    return Tokenizer(str(checkpoint / TOKENIZER)) if (checkpoint / TOKENIZER).is_file() else None


def exported_blocks(stored: torch.Tensor, record: ParameterRecord, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """A stored parameter as it is exported, in blocks of whole rows."""
    turned = stored.t() if record.transposed else stored
    for block in turned.split(max(1, BLOCK_ENTRIES * len(turned) // turned.numel())):
        if record.kind == "scale":
            block = block * record.factor
        yield (block.abs() if record.absolute else block).to(dtype)


def _generation(tokenizer: Tokenizer, vocabulary: int) -> dict:
    """`generation_config.json`: what ends a text, and what comes before its first token."""
    unused = list(range(tokenizer.size, vocabulary))  # entries of the model that no text has
    return {**special_ids(tokenizer), **({"suppress_tokens": unused} if unused else {})}


def _write_shards(stored: StoredTensors, model: Model, directory: Path, dtype: torch.dtype, shard_bytes: int) -> None:
    parameters = parameter_table(model, stored.state["vocabulary"])
    shards = list(_divide(parameters, dtype.itemsize, shard_bytes))
    weight_map, total, console = {}, 0, Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("exporting", total=len(parameters))

        def blocks(name: str) -> Iterator[torch.Tensor]:
            yield from exported_blocks(stored.read(name), parameters[name], dtype)
            bar.advance(task)

        for number, shapes in enumerate(shards, 1):
            file = TENSORS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            write_tensors(directory / file, shapes, dtype, blocks)
            weight_map |= dict.fromkeys(shapes, file)
            total += dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes.values())
    if len(shards) > 1:
        _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _divide(parameters: dict[str, ParameterRecord], itemsize: int, shard_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names in order with the shapes they are exported in, in groups of at most `shard_bytes` (or of one tensor)."""
    shapes, size = {}, 0
    for name, record in sorted(parameters.items()):
        nbytes = itemsize * record.size
        if shapes and size + nbytes > shard_bytes:
            yield shapes
            shapes, size = {}, 0
        shapes[name] = record.exported_shape
        size += nbytes
    yield shapes


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _sync_files(directory: Path) -> None:
    """Make the files of a directory, and their names, durable."""
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)
