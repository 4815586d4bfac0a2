"""What a start loads. Seconds are not asked for: `python -m benchmarks.startup` tells them."""

import subprocess
import sys

from tests.distributed.corpus import REPOSITORY

CHECKS = "megatron_ngpt.training.entry, megatron_ngpt.cli"
TRAINS = "megatron_ngpt.training.loop, megatron_ngpt.training.run, megatron_ngpt.inference.generate"


def loaded(modules: str, *heavy: str) -> list[str]:
    """Which of the `heavy` modules are there once `modules` have been imported."""
    code = f"import sys, {modules}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_a_recipe_is_refused_before_anything_heavy_is_loaded():
    assert loaded(CHECKS, "torch", "deepspeed", "pandas", "transformers", "matplotlib", "tensorboard", "sympy") == []


def test_no_compiler_is_loaded_where_nothing_is_compiled():
    """Half of a rank's start. torch.distributed.checkpoint, which loads sympy, is what checkpoints are made with."""
    heavy = "torch._inductor.compile_fx", "torch._dynamo", "triton", "tensorboard", "matplotlib", "transformers", "pandas"
    assert loaded(TRAINS, *heavy) == []
