"""`checkpoint.initial`: training starts from an exported model, in any layout."""

from pathlib import Path

import torch

from megatron_ngpt.checkpoint.exported import differences, read_config
from megatron_ngpt.checkpoint.exported_tensors import ExportedTensors
from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.parallel.shards import Shard
from megatron_ngpt.parallel.together import together


@torch.no_grad()
def load_initial(directory: Path, shards: dict[str, Shard], blueprint: Blueprint, key: str | None = None) -> None:
    """Fill the masters from an exported directory, ours or a Llama's (collective); a rank reads just the slices that it holds.

    Values that fp32 or bfloat16 rounded are taken as they are: the caller renormalises and publishes the masters.

    Raises:
        ConfigError: on every rank; the export is not readable, or of another architecture or shape than the recipe's model.
            Lines start with `key`, which the directory was given as; None: as `checkpoint.initial`.
    """
    key = key or f"checkpoint.initial = {directory}"

    def fill() -> None:
        problems = differences(read_config(directory, key), blueprint.model, blueprint.vocabulary, key)
        if problems:
            raise ConfigError(*problems)
        exported = ExportedTensors(directory, key)
        check_tensors(exported.shapes, blueprint.parameters, key)
        for name, shard in shards.items():
            record = blueprint.parameters[name]
            for box in shard.boxes(shard.master):
                box.values.copy_(exported.read(record, box.rows, box.columns).float() / record.factor)
                if not torch.isfinite(box.values).all():
                    raise ConfigError(f"{key}: holds values of {name} that are not finite; choose another model")

    together(fill, f"{key}: could not be read")


def check_tensors(found: dict[str, tuple[int, ...]], parameters: dict[str, ParameterRecord], key: str) -> None:
    """Refuse tensors that are missing, unknown or of another shape."""
    needed = {name: record.exported_shape for name, record in parameters.items()}
    problems = []
    for name in needed.keys() | found.keys():
        have, want = found.get(name), needed.get(name)
        if have != want:
            shown = [f"shape {list(shape)}" if shape else "none" for shape in (have, want)]
            problems.append(f"{key}: has for {name} {shown[0]}, the model has {shown[1]}")
    if problems:
        raise ConfigError(*sorted(problems))
