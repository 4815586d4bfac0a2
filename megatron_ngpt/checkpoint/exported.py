"""The model outside: names, shapes and `config.json` of an exported directory, ours or a Llama's.

Names are the parameters' own. Against storage, the projections back to the hidden axis are turned to `Linear` layout, and
learned scales have the value with which they act. Nothing here needs torch: a recipe is held against an export before that is imported.
"""

import json
from pathlib import Path

from pydantic import ValidationError

from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.foreign import read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.model"
_ROPE_TYPES = {"none": "default", "ntk": "default", "linear": "linear", "yarn": "yarn"}
_ROPE_FIXED = {"partial_rotary_factor": 1, "beta_fast": 32, "beta_slow": 1, "truncate": True}
_ROPE_FIXED |= dict.fromkeys(("attention_factor", "mscale", "mscale_all_dim"))
ARCHITECTURES = {"ngpt": "ngpt", "gpt": "llama"}  # the recipe's name and config.json's model_type

_VALID = "valid is a directory that ngpt export wrote, or for the gpt baseline a LlamaForCausalLM with safetensors"
_CODE = {
    "AutoConfig": "configuration_ngpt.NGPTConfig",
    "AutoModel": "modeling_ngpt.NGPTModel",
    "AutoModelForCausalLM": "modeling_ngpt.NGPTForCausalLM",
}


def make_config(model: Model, vocabulary: int, dtype: str, special: dict[str, int | None], boundaries: str) -> dict:
    """`config.json`: for nGPT its own kind, which names the code beside it; for the baseline a plain `LlamaForCausalLM`.

    `special` are the ids of special tokens, by their entries' names.
    """
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
        "rope_theta": model.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        **special,
        "document_boundaries": boundaries,
    }
    if (rope := rope_entries(model))["rope_type"] != "default":
        config["rope_parameters"] = rope
    if model.arch == "ngpt":
        return {**config, "architectures": ["NGPTForCausalLM"], "auto_map": _CODE, "update": model.update}
    llama = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": model.norm_eps, "attention_bias": False, "mlp_bias": False}
    return {**config, **llama}


def rope_entries(model: Model) -> dict:
    """The rotary embedding as `transformers` calls it; ntk is nothing but another base there."""
    scaling = model.rope_scaling
    entries = {"rope_type": _ROPE_TYPES[scaling.kind], "rope_theta": model.rope_theta}
    if entries["rope_type"] != "default":
        entries["factor"] = scaling.factor
    if scaling.kind == "yarn":
        entries["original_max_position_embeddings"] = scaling.original_context
    return entries


def read_config(directory: Path, key: str) -> dict:
    """`config.json` of an exported directory, with what Llama's leaves out or nests made plain: the entries of `rope_entries` at the top.

    Raises:
        ConfigError: it is not one of ours or a Llama's; the line starts with `key`, what the user gave the directory as.
    """
    try:
        config = read_json((directory / CONFIG).read_bytes())
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}: {directory / CONFIG} cannot be read ({reason}); {_VALID}") from None
    if kind not in ARCHITECTURES.values():
        raise ConfigError(f"{key}: {directory} holds a model of type {kind}; valid are {', '.join(ARCHITECTURES.values())}")
    return _plain(config)


def tensor_files(directory: Path, key: str) -> list[Path]:
    """The safetensors files of an exported directory. Raises ConfigError, as `read_config`, if one is missing."""
    index, names = directory / INDEX, [TENSORS]
    if index.is_file():
        try:
            names = sorted(set(read_json(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{key}: {index} cannot be read ({type(error).__name__}: {error}); {_VALID}") from None
    for name in names:
        if not (directory / name).is_file():
            raise ConfigError(f"{key}: {directory / name} is missing; {_VALID}")
    return [directory / name for name in names]


def model_of(config: dict, key: str) -> Model:
    """The model that `read_config` found. Scales keep their defaults: any start gives the exported effective values."""
    if problems := _inexpressible(config, key):
        raise ConfigError(*problems)
    scaling = {"kind": {"default": "none"}.get(config["rope_type"], config["rope_type"])}
    if config["rope_type"] != "default":
        scaling |= {"factor": config.get("factor")}
    if config["rope_type"] == "yarn":
        scaling |= {"original_context": config.get("original_max_position_embeddings")}
    try:
        return Model(
            arch=_arch(config),
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            ffn=config["intermediate_size"],
            context=config["max_position_embeddings"],
            vocab=config["vocab_size"],
            rope_base=config["rope_theta"],
            rope_scaling=scaling,
            norm_eps=config["rms_norm_eps"],
            update=config["update"] if config["model_type"] == "ngpt" else "lerp",
        )
    except (KeyError, ValidationError) as error:
        raise ConfigError(f"{key}: {CONFIG} does not fit ({str(error).splitlines()[0]}); {_VALID}") from None


def differences(config: dict, model: Model, vocabulary: int | None, key: str) -> list[str]:
    """A line for each entry of `config` that says another function than the recipe's model; both values are in it.

    `vocabulary` is left out where it is None, because it is not known.
    """
    recipe = {
        "model_type": ("model.arch", ARCHITECTURES[model.arch]),
        "num_hidden_layers": ("model.layers", model.layers),
        "hidden_size": ("model.hidden", model.hidden),
        "num_attention_heads": ("model.heads", model.heads),
        "num_key_value_heads": ("model.kv_heads", model.groups),
        "intermediate_size": ("model.ffn", model.ffn_size),
        "vocab_size": ("model.vocab", vocabulary),
        **_rope_wanted(config, model),
    }
    if model.arch == "ngpt":
        recipe["update"] = ("model.update", model.update)
    else:
        recipe["rms_norm_eps"] = ("model.norm_eps", model.norm_eps)
    if vocabulary is None:
        del recipe["vocab_size"]
    return [
        f"{key}: has {entry} {_shown(config.get(entry))}, the recipe {_shown(wanted)}; set {recipe_key} to match, or choose another model"
        for entry, (recipe_key, wanted) in recipe.items()
        if config.get(entry) != wanted
    ] + _inexpressible(config, key)


def _rope_wanted(config: dict, model: Model) -> dict[str, tuple[str, object]]:
    """The recipe's keys and values for the entries of the rotary embedding.

    A recipe that scales what `config` does not is no mistake: it means to go on at a longer context. Where types differ no more is said.
    """
    names = {"rope_type": "rope_scaling.kind", "rope_theta": "rope_base", "factor": "rope_scaling.factor"}
    names["original_max_position_embeddings"] = "rope_scaling.original_context"
    before, wanted = (rope_entries(shape) for shape in (model.model_copy(update={"rope_scaling": RopeScaling()}), model))
    if all(config[entry] == value for entry, value in before.items()):
        return {}
    same = wanted["rope_type"] == config["rope_type"]
    return {entry: (f"model.{names[entry]}", value) for entry, value in wanted.items() if same or entry in before}


def _inexpressible(config: dict, key: str) -> list[str]:
    """A line for each entry that no recipe of that architecture can have."""
    fixed = {"hidden_act": "silu", "tie_word_embeddings": False, **_ROPE_FIXED}
    if config["model_type"] == "llama":
        fixed |= {"attention_bias": False, "mlp_bias": False}
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        fixed["head_dim"] = hidden // heads
    lines = [
        f"{key}: has {entry} {_shown(config[entry])}, and model.arch: {_arch(config)} always {_shown(wanted)}; choose another model"
        for entry, wanted in fixed.items()
        if entry in config and config[entry] != wanted
    ]
    if config["rope_type"] not in (types := list(dict.fromkeys(_ROPE_TYPES.values()))):
        lines.append(f"{key}: has rope_type {_shown(config['rope_type'])}; valid are {', '.join(types)}; choose another model")
    return lines


def _plain(config: dict) -> dict:
    """Absent or null entries out, those that follow from others in; rope as one base and one type, wherever it stood."""
    config = {entry: value for entry, value in config.items() if value is not None}
    rope = config.get("rope_parameters", config.get("rope_scaling"))
    rope = rope if isinstance(rope, dict) else {}
    return {
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        **({"num_key_value_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}),
        **({"original_max_position_embeddings": config["max_position_embeddings"]} if "max_position_embeddings" in config else {}),
        **config,
        **{entry: value for entry, value in rope.items() if value is not None},
        "rope_type": rope.get("rope_type") or rope.get("type") or "default",
    }


def _arch(config: dict) -> str:
    return next(arch for arch, kind in ARCHITECTURES.items() if kind == config["model_type"])


def _shown(value: object) -> str:
    return json.dumps(value)
