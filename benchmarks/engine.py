"""The training engine for a benchmark, which reads no data and writes nothing."""

from typing import TYPE_CHECKING

import torch

from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, engine_config
from megatron_ngpt.config.recipe import Recipe

if TYPE_CHECKING:
    from megatron_ngpt.training.engine import Engine


def fp32(stage: int) -> DeepSpeedChoice:
    """ZeRO's stage in fp32, and nothing else."""
    return DeepSpeedChoice(stage, False, False, {"zero_optimization": {"stage": stage}})


def build_engine(
    model: dict, vocabulary: int, choice: DeepSpeedChoice, device: torch.device, tensor: int = 1, compiled: bool = False
) -> "Engine":
    """As the loop builds it, on every rank of the process group, which must be there; two samples a step, one at a time."""
    from megatron_ngpt.parallel.grid import make_grid
    from megatron_ngpt.training.engine import Engine

    recipe = Recipe.model_validate(
        {
            "model": model,
            "parallel": {"tensor": tensor},
            "data": {"tokenizer": "none is read", "train": [{"prefix": "none is read"}]},
            "training": {"output": "nothing is written", "global_batch": 2, "micro_batch": 1, "compile": compiled},
        }
    )
    grid = make_grid(tensor=tensor)
    engine = Engine(recipe, vocabulary, engine_config(recipe, choice, grid.readers.size), grid, device)
    engine.initialise()
    return engine
