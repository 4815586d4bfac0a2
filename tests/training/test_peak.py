"""What config.costs states of memory against torch's allocator and against what autograd saves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.machine import peak_bytes
from benchmarks.saved import saved_bytes
from megatron_ngpt.config.costs.memory import block_bytes, memory
from megatron_ngpt.config.costs.share import Share
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Data, Dataset, Model, Parallel, Recipe, Training
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.window import window_of
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.training.engine import Engine
from tests.distributed.corpus import REPOSITORY
from tests.on_ranks import on_ranks

V = 512
SHAPE = {"layers": 3, "hidden": 96, "heads": 4, "ffn": 160, "context": 128}


def recipe_of(json: str = "ds_configs/zero0.json", micro_batch: int = 2, recompute: str = "none", ffn_chunks: int = 1, **model) -> Recipe:
    return Recipe(
        model=Model(**SHAPE | model), data=Data(tokenizer="none", train=[Dataset(prefix="none")]), deepspeed=str(REPOSITORY / json),
        training=Training(output="none", global_batch=2 * micro_batch, micro_batch=micro_batch, recompute=recompute, ffn_chunks=ffn_chunks),
    )  # fmt: skip


# What a block keeps, exactly.


@pytest.mark.parametrize("keys", [
    {}, {"kv_heads": 2}, {"update": "slerp"}, {"arch": "gpt"}, {"arch": "gpt", "kv_heads": 2},
    {"residual_dtype": "bfloat16"}, {"arch": "gpt", "residual_dtype": "bfloat16"},
])  # fmt: skip
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kept", [{}, {"recompute": "selective"}, {"ffn_chunks": 4}, {"recompute": "selective", "ffn_chunks": 4}], ids=str)
def test_a_block_keeps_what_is_stated(keys, bf16, kept):
    if keys.get("residual_dtype") and not bf16:
        pytest.skip("a residual stream of bf16 beside weights of fp32 is nobody's choice")
    recipe = recipe_of(**keys, **kept)
    module = Decoder(Blueprint(recipe.model, V, **kept)).to(torch.bfloat16 if bf16 else torch.float32)
    stated = block_bytes(Share(recipe, DeepSpeedChoice(1, bf16, False, {}), V, 1))
    assert bytes_kept(module, SHAPE["context"]) == stated * 2 * SHAPE["context"]


def bytes_kept(module: Decoder, length: int) -> int:
    """By the second block, of two sequences of which this rank has `length` tokens."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    window = window_of(module.blueprint, length, None, module)
    h = module.layers[1](module.layers[0](torch.zeros(2, length, dtype=torch.int64)), window)
    kept: dict[int, torch.Tensor] = {}
    with saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor):
        module.layers[2](h, window)
    # Copies of learned scales, and the rotation, which all blocks share, do not grow with the batch.
    of_tokens = [t for at, t in kept.items() if at not in weights and t.shape[0] in (2, 2 * length) and t.shape[1:2] != (24,)]
    return sum(t.untyped_storage().nbytes() for t in of_tokens)


@pytest.mark.heavy  # it compiles three blocks
def test_a_compiled_block_keeps_about_as_much_as_the_baselines():
    """The compiler decides, and could keep what backward is to make again."""
    baseline, *ours = (saved_bytes(keys, {}, 128, compiled=True) for keys in ({"arch": "gpt"}, {"update": "lerp"}, {"update": "slerp"}))
    assert max(ours) <= 1.05 * baseline


OVER_CONTEXT_RANKS = [("ulysses", {}), ("ulysses", {"kv_heads": 1}), ("ulysses", {"arch": "gpt"}), ("ring", {}), ("ring", {"arch": "gpt"})]


def kept_over_context_ranks() -> list[int]:
    grid = make_grid(context=2)
    blueprints = [Blueprint(recipe_of(**keys).model, V, grid=grid, context_kind=kind) for kind, keys in OVER_CONTEXT_RANKS]
    return [bytes_kept(Decoder(blueprint), SHAPE["context"] // 2) for blueprint in blueprints]


def test_a_block_keeps_what_is_stated_over_context_ranks():
    stated = []
    for kind, keys in OVER_CONTEXT_RANKS:
        recipe = recipe_of(**keys).model_copy(update={"parallel": Parallel(context=2, context_kind=kind)})
        stated.append(block_bytes(Share(recipe, DeepSpeedChoice(1, False, False, {}), V, 2)) * SHAPE["context"])
    assert on_ranks(2, kept_over_context_ranks) == [stated] * 2


# The peak of a training step.

LARGE = {  # each with a component that outweighs the others
    "activations": {"micro_batch": 8, "layers": 8, "hidden": 128, "ffn": 512, "context": 128},
    "state": {"micro_batch": 1, "layers": 8, "hidden": 256, "ffn": 1024, "context": 32},
    "recompute": {"micro_batch": 16, "layers": 8, "hidden": 128, "ffn": 512, "context": 128, "recompute": "full"},
    "selective": {"micro_batch": 8, "layers": 8, "hidden": 128, "ffn": 512, "context": 128, "recompute": "selective"},
    "chunks": {"micro_batch": 8, "layers": 8, "hidden": 128, "ffn": 512, "context": 128, "ffn_chunks": 4},
    "gpt": {"micro_batch": 8, "layers": 8, "hidden": 128, "ffn": 512, "context": 128, "arch": "gpt"},
}


def peak_of(name: str, json: str) -> int:
    """The most bytes allocated at once while an engine is made and trains two steps."""
    join_deepspeed(torch.device("cpu"))
    recipe, grid = recipe_of(json, **LARGE[name]), make_grid()
    tokens = np.random.default_rng(0).integers(0, V, (recipe.training.global_batch, recipe.model.context + 1)).astype(np.int32)

    def train() -> None:
        choice = read_deepspeed(recipe.deepspeed)
        engine = Engine(recipe, V, engine_config(recipe, choice, 1), grid, torch.device("cpu"))
        engine.initialise()
        for _ in range(2):
            engine.step(SimpleNamespace(tokens=tokens), 1e-3, measure=False)

    return peak_bytes(train)[0]


@pytest.mark.parametrize("json", ["ds_configs/zero0.json", "ds_configs/zero1.json"])
@pytest.mark.parametrize("name", LARGE)
def test_the_peak_of_training_is_within_a_tenth_of_what_is_stated(name, json):
    stated = memory(recipe_of(json, **LARGE[name]), read_deepspeed(str(REPOSITORY / json)), V, 1)
    bucket = stated.buffers if "zero1" in json else 0  # would outweigh all else
    wanted = pytest.approx(stated.device - bucket, rel=0.1)
    found = on_ranks(1, peak_of, name, json, seconds=100)[0] - bucket
    if found > wanted.expected:  # one in some dozens has a set of gradients more, that something has not let go of yet
        found = min(found, on_ranks(1, peak_of, name, json, seconds=100)[0] - bucket)
    assert found == wanted, stated
