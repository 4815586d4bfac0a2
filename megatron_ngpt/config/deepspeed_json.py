"""DeepSpeed's JSON: it chooses ZeRO, precision and offload; the recipe owns everything else, so each value has one home.

Key names and defaults: deepspeed/runtime/config.py, zero/config.py, zero/offload_config.py and precision_config.py (0.19.8).
DeepSpeed ignores top-level keys that it does not know; here they are refused, so that a typing error can't turn ZeRO off.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.errors import ConfigError

TOP = (
    "zero_optimization", "bf16", "communication_data_type", "comms_logger", "flops_profiler", "wall_clock_breakdown",
    "memory_breakdown", "steps_per_print", "log_level", "dump_state", "disable_python_gc",
)
ZERO = (
    "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "offload_optimizer", "sub_group_size",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential", "memory_efficient_linear",
)
OFFLOAD = ("device", "pin_memory")
BF16 = ("enabled", "immediate_grad_update", "check_grad_overflow")

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
    """What the file `path` (from the working directory) chooses. Raises ConfigError with every problem, one line each."""
    raw = _read(path)
    problems = _top_problems(path, raw)
    for section, known in (("zero_optimization", ZERO), ("bf16", BF16)):
        problems += _section_problems(path, raw, section, known)
    zero = raw.get("zero_optimization") if isinstance(raw.get("zero_optimization"), dict) else {}
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        problems.append(f"deepspeed: {path}: zero_optimization.stage = {json.dumps(stage)}: choose 0, 1, 2 or 3")
    offload = _offload(path, zero, problems)
    if offload and stage == 0:
        problems.append(f"deepspeed: {path}: offload_optimizer needs ZeRO; choose zero_optimization.stage 1, 2 or 3")
    if problems:
        raise ConfigError(*problems)
    return DeepSpeedChoice(stage, raw.get("bf16", {}).get("enabled", False), offload, raw)


def engine_config(recipe: Recipe, choice: DeepSpeedChoice, data_ranks: int) -> dict:
    """The whole configuration for `deepspeed.initialize`: the JSON's choices and what the recipe owns.

    * Gradients accumulate in fp32. With bf16 and ZeRO-1 this selects BF16_Optimizer, which needs it.
    * ZeRO-0 reports no gradient norm, so the trainer computes the norm and clips; DeepSpeed must not clip a second time.
    * The base optimiser is ours, which DeepSpeed calls untested, also with its state in host memory.
    * Pipeline stages send whole activations: the default sends each tensor rank's slice and gathers, which mixes up slices
      under sequence parallelism.
    """
    training = recipe.training
    quiet = {"steps_per_print": 2**31 - 1, "wall_clock_breakdown": False}
    owned = {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.global_batch // (training.micro_batch * data_ranks),
        "gradient_clipping": recipe.optimizer.clip if choice.zero_stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
    }
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
        raw = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=no_repeats)
    except FileNotFoundError:
        raise ConfigError(f"deepspeed = {path}: no such file{_neighbours(path)}") from None
    except OSError as error:
        raise ConfigError(f"deepspeed = {path}: cannot read it: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeed: {path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"deepspeed = {path}: not a text file in UTF-8; choose a JSON file") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"deepspeed: {path}: holds no JSON object; see the files in ds_configs/")
    return raw


def _neighbours(path: str) -> str:
    """What there is instead, for the end of a message about a missing file."""
    names = sorted(file.name for file in Path(path).parent.glob("*.json"))
    if names:
        return f"; {Path(path).parent} has {', '.join(names)}"
    return f" below {Path.cwd()}; paths are resolved from the working directory" if not Path(path).is_absolute() else ""


def _top_problems(path: str, raw: dict) -> list[str]:
    problems = []
    for key in raw:
        if key in OWNED:
            problems.append(f"deepspeed: {path}: {key} is the recipe's: remove it there and set {OWNED[key]}")
        elif key == "fp16":
            problems.append(f"deepspeed: {path}: fp16 is not supported: choose bf16 (ds_configs/bf16-*.json) or fp32")
        elif key not in TOP:
            problems.append(f"deepspeed: {path}: {key} is not supported; {_closest(key, TOP)}")
    return problems


def _section_problems(path: str, raw: dict, section: str, known: tuple[str, ...]) -> list[str]:
    """Unknown keys, and switches that are not true or false, in one section of the JSON."""
    inner = raw.get(section, {})
    if not isinstance(inner, dict):
        return [f"deepspeed: {path}: {section} = {json.dumps(inner)}: must be an object of keys"]
    problems = [f"deepspeed: {path}: {section}.{key} is not supported; {_closest(key, known)}" for key in inner if key not in known]
    enabled = inner.get("enabled", False)
    if not isinstance(enabled, bool):
        problems.append(f"deepspeed: {path}: {section}.enabled = {json.dumps(enabled)}: must be true or false")
    return problems


def _offload(path: str, zero: dict, problems: list[str]) -> bool:
    """Whether the optimiser lives in host memory; adds what is wrong with the choice to `problems`."""
    chosen = zero.get("offload_optimizer")
    if chosen is None:
        return False
    where = f"deepspeed: {path}: zero_optimization.offload_optimizer"
    if not isinstance(chosen, dict):
        problems.append(f'{where} = {json.dumps(chosen)}: must be an object, {{"device": "cpu"}}')
        return False
    problems += [f"{where}.{key} is not supported; {_closest(key, OFFLOAD)}" for key in chosen if key not in OFFLOAD]
    device = chosen.get("device", "none")
    if device not in ("cpu", "none"):
        problems.append(f"{where}.device = {json.dumps(device)}: choose cpu or none")
    return device == "cpu"


def _closest(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
