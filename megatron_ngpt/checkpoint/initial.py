"""`checkpoint.initial`: training starts from an exported model, in any layout."""

from pathlib import Path

import torch

from megatron_ngpt.checkpoint.exported import ARCHITECTURES, ExportedTensors, effective_factor, is_turned, read_config
from megatron_ngpt.checkpoint.together import together
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.shards import Shard

KEY = "checkpoint.initial"


@torch.no_grad()
def load_initial(directory: Path, shards: dict[str, Shard], blueprint: Blueprint, key: str = KEY) -> None:
    """Fill the masters from an exported directory (collective); a rank reads just the slices that it holds.

    Values that fp32 or bfloat16 rounded are taken as they are: the caller renormalises and publishes the masters.

    Raises:
        ConfigError: on every rank; the export is not readable, or of another architecture or shape than the recipe's model.
            It names `key`, which the directory was given as.
    """

    def fill() -> None:
        check_config(read_config(directory, key), directory, blueprint, key)
        exported = ExportedTensors(directory, key)
        check_tensors(exported.shapes, directory, blueprint, key)
        for name, shard in shards.items():
            factor = effective_factor(blueprint.model, name) or 1.0
            for box in shard.boxes(shard.master):
                box.values.copy_(exported.read(name, box.rows, box.columns).float() / factor)

    together(fill, f"{key}: {directory} could not be read")


def check_config(config: dict, directory: Path, blueprint: Blueprint, key: str) -> None:
    """Refuse a `config.json` that describes another function than the recipe's model, all differences at once."""
    model = blueprint.model
    wanted = {
        "model_type": ("model.arch", model.arch, ARCHITECTURES[model.arch]),
        "num_hidden_layers": ("model.layers", model.layers, model.layers),
        "hidden_size": ("model.hidden", model.hidden, model.hidden),
        "num_attention_heads": ("model.heads", model.heads, model.heads),
        "num_key_value_heads": ("model.kv_heads", model.kv_heads, model.groups),
        "intermediate_size": ("model.ffn", model.ffn, model.ffn_size),
        "vocab_size": ("model.vocab", model.vocab, blueprint.vocabulary),
        "rope_theta": ("model.rope_base", model.rope_base, model.rope_base),
        "update": ("model.update", model.update, model.update),
        "rms_norm_eps": ("model.arch", model.arch, 1e-6),
    }
    problems = [
        f"{recipe_key}: {value} means {entry} {needed}, but {key} {directory} has {config[entry]}"
        for entry, (recipe_key, value, needed) in wanted.items()
        if entry in config and config[entry] != needed
    ]
    if problems:
        raise ConfigError(*problems)


def check_tensors(found: dict[str, tuple[int, ...]], directory: Path, blueprint: Blueprint, key: str) -> None:
    """Refuse tensors that are missing, unknown or of another shape."""
    with torch.device("meta"):
        whole = Decoder(Blueprint(blueprint.model, blueprint.vocabulary))
    needed = {p.full_name: p.placement.shape[::-1] if is_turned(p.full_name) else p.placement.shape for p in whole.parameters()}
    problems = []
    for name in needed.keys() | found.keys():
        have, want = found.get(name), needed.get(name)
        if have != want:
            shown = [f"shape {list(shape)}" if shape else "none" for shape in (have, want)]
            problems.append(f"{key}: {directory} has for {name} {shown[0]}, the model has {shown[1]}")
    if problems:
        raise ConfigError(*sorted(problems))
