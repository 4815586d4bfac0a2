"""The model outside: names, shapes, `config.json` and tensors of an exported directory.

Names are the parameters' own. Against storage, the projections back to the hidden axis are turned to `Linear` layout, and
learned scales have the value with which they act.
"""

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from megatron_ngpt.config.recipe import Model, scale_start
from megatron_ngpt.errors import ConfigError

CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.model"
ARCHITECTURES = {"ngpt": "ngpt", "gpt": "llama"}  # the recipe's name and config.json's model_type

_VALID = "valid is a directory that ngpt export wrote"
_TURNED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_SCALES = {"qk_scale": "qk", "alpha": "alpha", "up_scale": "up", "gate_scale": "gate", "logit_scale": "logit"}


def is_turned(name: str) -> bool:
    """The matrix is stored transposed, and exported in `Linear` layout."""
    return name.endswith(_TURNED)


def effective_factor(model: Model, name: str) -> float | None:
    """effective value / stored value of a learned scale; None for what is not one."""
    kind = _SCALES.get(name.rsplit(".", 1)[-1])
    if kind is None:
        return None
    effective, stored = scale_start(model, kind)
    return effective / stored


def make_config(model: Model, vocabulary: int, dtype: str, eos: int | None, boundaries: str) -> dict:
    """`config.json`: for nGPT its own kind, for the baseline a plain `LlamaForCausalLM`."""
    config = {
        "model_type": ARCHITECTURES[model.arch],
        "hidden_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.groups,
        "head_dim": model.head_size,
        "intermediate_size": model.ffn_size,
        "vocab_size": vocabulary,
        "max_position_embeddings": model.context,
        "rope_theta": model.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": eos,
        "document_boundaries": boundaries,
    }
    if model.arch == "ngpt":
        return {**config, "update": model.update}
    llama = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False}
    return {**config, **llama}


def read_config(directory: Path, key: str) -> dict:
    """`config.json` of an exported directory. Raises ConfigError, naming `key`, if it is not one of ours or a Llama's."""
    try:
        config = json.loads((directory / CONFIG).read_text("utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: {directory / CONFIG} cannot be read ({reason}); {_VALID}") from None
    if kind not in ARCHITECTURES.values():
        raise ConfigError(f"{key}: {directory} holds a model of type {kind}; valid are {', '.join(ARCHITECTURES.values())}")
    return config


def model_of(config: dict, key: str) -> Model:
    """The model that `config.json` describes. Scales keep their defaults: any start gives the exported effective values."""
    try:
        return Model(
            arch=next(arch for arch, kind in ARCHITECTURES.items() if kind == config["model_type"]),
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            ffn=config["intermediate_size"],
            context=config["max_position_embeddings"],
            vocab=config["vocab_size"],
            rope_base=config["rope_theta"],
            update=config.get("update", "lerp"),
        )
    except (KeyError, ValidationError) as error:
        raise ConfigError(f"{key}: {CONFIG} does not fit ({str(error).splitlines()[0]}); {_VALID}") from None


class ExportedTensors:
    """The tensors of an exported directory: shapes without reading them, slices without reading the rest."""

    def __init__(self, directory: Path, key: str):
        index = directory / INDEX
        files = json.loads(index.read_text("utf-8"))["weight_map"].values() if index.is_file() else [TENSORS]
        self._files = {}
        try:
            for name in sorted(set(files)):
                file = safe_open(directory / name, framework="pt", device="cpu")
                self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{key}: {directory / name} cannot be read ({error}); {_VALID}") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()}

    def read(self, name: str, rows: slice, columns: slice) -> torch.Tensor:
        """A rectangle of a tensor in storage layout, [rows, columns]; a tensor of one dimension is one column."""
        part = self._files[name].get_slice(name)
        if len(part.get_shape()) == 1:
            return part[rows].unsqueeze(1)
        return part[columns, rows].t() if is_turned(name) else part[rows, columns]
