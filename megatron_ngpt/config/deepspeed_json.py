"""DeepSpeed's JSON: it chooses ZeRO, precision and offload; the recipe owns everything else, so each value has one home.

Key names and defaults: deepspeed/runtime/config.py, zero/config.py, zero/offload_config.py and precision_config.py (0.19.8).
DeepSpeed ignores top-level keys that it does not know; here they are refused, so that a typing error can't turn ZeRO off.
"""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ngpt.config import shipped
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.foreign import read_json

TOP = (
    "zero_optimization", "bf16", "communication_data_type", "comms_logger", "flops_profiler", "wall_clock_breakdown",
    "memory_breakdown", "steps_per_print", "log_level", "dump_state", "disable_python_gc",
)
ZERO = {
    "stage": int, "contiguous_gradients": bool, "reduce_scatter": bool, "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool, "allgather_partitions": bool, "allgather_bucket_size": int, "overlap_comm": bool,
    "offload_optimizer": dict, "sub_group_size": int, "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int, "stage3_model_persistence_threshold": int, "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int, "stage3_module_granularity_threshold": int,
    "stage3_use_all_reduce_for_fetch_params": bool, "stage3_allgather_sequential": bool, "memory_efficient_linear": bool,
}
OFFLOAD = {"device": str, "pin_memory": bool}
BF16 = {"enabled": bool, "immediate_grad_update": bool}
WANTED = {bool: "true or false", int: "a whole number from 0", dict: "an object of keys", str: "a text"}

OWNED = {
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "optimizer.clip",
    "optimizer": "the recipe's section optimizer",
    "scheduler": "the recipe's section schedule",
    "activation_checkpointing": "training.recompute",
    "compile": "training.compile",
    "checkpoint": "the recipe's section checkpoint",
    "pipeline": "parallel.pipeline",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel_size": "parallel.sequence",
}


@dataclass(frozen=True)
class DeepSpeedChoice:
    """What a JSON file chooses: ZeRO stage 0 to 3, bf16 or fp32, the optimiser in host memory or on the device."""

    zero_stage: int
    bf16: bool
    offload: bool
    raw: dict

    @property
    def name(self) -> str:
        """As people say it: `ZeRO-2 bf16, optimiser offloaded`."""
        return f"ZeRO-{self.zero_stage} {'bf16' if self.bf16 else 'fp32'}{', optimiser offloaded' if self.offload else ''}"


def read_deepspeed(path: str) -> DeepSpeedChoice:
    """What the file `path` chooses: from the working directory, or, by its name, one that comes with the package.

    Raises ConfigError with every problem, one line each.
    """
    raw = _read(path)
    zero, bf16 = raw.get("zero_optimization", {}), raw.get("bf16", {})
    problems = _top_problems(raw) + _section_problems(zero, "zero_optimization", ZERO) + _section_problems(bf16, "bf16", BF16)
    if not problems:
        problems = _zero_problems(zero)
    if problems:
        raise ConfigError(*(f"deepspeed: {path}: {problem}" for problem in problems))
    offload = zero.get("offload_optimizer", {}).get("device", "none") == "cpu"
    return DeepSpeedChoice(int(zero.get("stage", 0)), bf16.get("enabled", False), offload, raw)


def engine_config(recipe: Recipe, choice: DeepSpeedChoice, readers: int) -> dict:
    """The whole configuration for `deepspeed.initialize`: the JSON's choices and what the recipe owns.

    `readers`: ranks that read other rows of the global batch.

    * Gradients accumulate in fp32. With bf16 and ZeRO-1 this selects BF16_Optimizer, which needs it.
    * Clipping, and whether a step is made at all, is our update's in every layout (`training/update.py`): DeepSpeed does neither.
    * DeepSpeed's throughput timer would wait for the device twice in every micro-batch.
    * The base optimiser is ours, which DeepSpeed calls untested, also with its state in host memory.
    * Pipeline stages send whole activations: the default sends each tensor rank's slice and gathers, which mixes up slices
      under sequence parallelism.
    """
    training = recipe.training
    quiet = {"steps_per_print": 2**31 - 1, "wall_clock_breakdown": False, "timers": {"throughput": {"enabled": False}}}
    owned = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.global_batch // (training.micro_batch * readers),
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
    if choice.bf16:
        owned["bf16"] = choice.raw["bf16"] | {"check_grad_overflow": False}
    return quiet | choice.raw | owned


def _read(path: str) -> dict:
    """The file's object; a syntax error is told with its line, a key given twice by its name."""

    def no_repeats(pairs: list[tuple[str, Any]]) -> dict:
        names = [name for name, _ in pairs]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                raise ConfigError(f"deepspeed: {path}: key {name!r} is given twice; keep one")
        return dict(pairs)

    try:
        raw = read_json(Path(shipped.located(path, shipped.DEEPSPEED)).read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except FileNotFoundError:
        raise ConfigError(f"deepspeed = {path}: no such file{shipped.hint(path, shipped.DEEPSPEED) or _neighbours(path)}") from None
    except OSError as error:
        raise ConfigError(f"deepspeed = {path}: cannot read it: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeed: {path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"deepspeed = {path}: not a text file in UTF-8; choose a JSON file") from None
    except ValueError as error:
        raise ConfigError(f"deepspeed: {path}: {error}; choose a JSON file such as those in ds_configs/") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"deepspeed: {path}: holds no JSON object; see the files in ds_configs/")
    return raw


def _neighbours(path: str) -> str:
    """What there is instead, for the end of a message about a missing file."""
    names = sorted(file.name for file in Path(path).parent.glob("*.json"))
    if names:
        return f"; {Path(path).parent} has {', '.join(names)}"
    return f" below {Path.cwd()}; paths are resolved from the working directory" if not Path(path).is_absolute() else ""


def _top_problems(raw: dict) -> list[str]:
    problems = []
    for key, value in raw.items():
        if key in OWNED:
            problems.append(f"{key} is the recipe's: remove it there and set {OWNED[key]}")
        elif key == "fp16":
            problems.append("fp16 is not supported: choose bf16 (ds_configs/bf16-*.json) or fp32")
        elif key not in TOP:
            problems.append(f"{key} is not supported; {_closest(key, TOP)}")
        elif key == "communication_data_type" and value not in ("fp32", "bf16"):
            problems.append(f"{key} = {json.dumps(value)}: choose fp32 or bf16")
    return problems


def _section_problems(section: Any, name: str, known: dict[str, type]) -> list[str]:
    """Unknown keys and values of the wrong type in one section of the JSON."""
    if not isinstance(section, dict):
        return [f"{name} = {json.dumps(section)}: must be {WANTED[dict]}"]
    problems = []
    for key, value in section.items():
        if key not in known:
            problems.append(f"{name}.{key} is not supported; {_closest(key, known)}")
        elif not _is(value, known[key]):
            problems.append(f"{name}.{key} = {json.dumps(value)}: must be {WANTED[known[key]]}")
        elif known[key] is dict:
            problems += _section_problems(value, f"{name}.{key}", OFFLOAD)
    return problems


def _is(value: Any, wanted: type) -> bool:
    """Whether a JSON value has the type; 5e8 is a whole number."""
    if wanted is int:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and value >= 0 and value == int(value)
    return isinstance(value, wanted)


def _zero_problems(zero: dict) -> list[str]:
    problems = []
    stage, device = zero.get("stage", 0), zero.get("offload_optimizer", {}).get("device", "none")
    if stage > 3:
        problems.append(f"zero_optimization.stage = {stage}: choose 0, 1, 2 or 3")
    if device not in ("cpu", "none"):
        problems.append(f"zero_optimization.offload_optimizer.device = {json.dumps(device)}: choose cpu or none")
    if device == "cpu" and stage == 0:
        problems.append("zero_optimization.offload_optimizer needs ZeRO; choose zero_optimization.stage 1, 2 or 3")
    return problems


def _closest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
