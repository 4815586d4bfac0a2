"""Parameter counts against the paper's models, and the memory estimate against counts by hand."""

import pytest

from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.recipe import Data, Dataset, Model, Parallel, Recipe, Training
from megatron_ngpt.config.size import memory, parameters


@pytest.mark.parametrize(("arch", "layers", "hidden", "heads", "count"), [
    ("ngpt", 24, 1024, 16, 468_491_520), ("ngpt", 36, 1280, 20, 1_026_177_280),
    ("gpt", 24, 1024, 16, 468_239_360), ("gpt", 36, 1280, 20, 1_025_731_840),
])
def test_the_papers_models_have_the_papers_parameters(arch, layers, hidden, heads, count):
    assert parameters(Model(arch=arch, layers=layers, hidden=hidden, heads=heads), 32_000) == count


def test_grouped_queries_and_a_narrow_feed_forward_count():
    model = Model(layers=2, hidden=8, heads=4, kv_heads=2, ffn=3)
    matrices = 2 * 8 * 8 + 2 * 4 * 8 + 3 * 3 * 8
    scales = 2 * 8 + 4 + 2 * 3
    assert parameters(model, 10) == 2 * 10 * 8 + 10 + 2 * (matrices + scales)


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
    assert offloaded.device == plain.device - plain.optimiser - plain.gradients == plain.weights + plain.activations
    assert estimate(2, False, 4, tensor=2)[0].weights == pytest.approx(plain.weights / 2, rel=1e-2)
    assert estimate(1, False, 2, pipeline=2)[0].weights < 0.6 * plain.weights
    assert estimate(2, False, 2, recompute="full")[0].activations < plain.activations
    assert estimate(2, False, 4, tensor=2, sequence=True)[0].activations < estimate(2, False, 4, tensor=2)[0].activations
