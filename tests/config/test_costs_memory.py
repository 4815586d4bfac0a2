"""The memory estimate against counts by hand."""

import pytest

from megatron_ngpt.config.costs.memory import memory
from megatron_ngpt.config.costs.work import parameters
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.recipe import Data, Dataset, Model, Parallel, Recipe, Training


def estimate(stage, bf16, ranks, offload=False, recompute="none", **parallel):
    recipe = Recipe(
        model=Model(layers=2, hidden=64, heads=4, context=32), parallel=Parallel(**parallel),
        data=Data(tokenizer="t", train=[Dataset(prefix="p")]),
        training=Training(output="o", global_batch=32, micro_batch=4, recompute=recompute),
    )
    return memory(recipe, DeepSpeedChoice(stage, bf16, offload, {}), 100, ranks), parameters(recipe.model, 100)


def test_each_zero_stage_divides_what_it_divides():
    for stage, shares in {0: (4, 4, 8), 1: (4, 4, 12 / 4), 2: (4, 4 / 4, 12 / 4), 3: (4 / 4, 4 / 4, 12 / 4)}.items():
        need, count = estimate(stage, False, 4)
        assert (need.weights, need.gradients, need.optimiser) == pytest.approx([share * count for share in shares], rel=1e-3)
    assert estimate(2, True, 4)[0].weights == 2 * estimate(2, True, 4)[1]


def test_offload_tensor_pipeline_and_recomputation_need_less_on_the_device():
    plain = estimate(2, False, 2)[0]
    offloaded = estimate(2, False, 2, offload=True)[0]
    assert offloaded.device == plain.device - plain.optimiser - plain.gradients
    assert plain.device - plain.optimiser - plain.gradients == plain.weights + plain.activations + plain.logits + plain.buffers
    assert estimate(2, False, 4, tensor=2)[0].weights == pytest.approx(plain.weights / 2, rel=1e-2)
    assert estimate(1, False, 2, pipeline=2)[0].weights < 0.6 * plain.weights
    assert estimate(2, False, 2, recompute="full")[0].activations < plain.activations
    assert estimate(2, False, 4, tensor=2, sequence=True)[0].activations < estimate(2, False, 4, tensor=2)[0].activations
