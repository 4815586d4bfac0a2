"""Rules between keys: each is broken once, alone, and says what to choose."""

import pytest

from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.config.rules import problems

FITS = """
model: {layers: 4, hidden: 64, heads: 4, context: 32}
data: {tokenizer: t, train: [{prefix: p}]}
training: {output: o, global_batch: 16, micro_batch: 2, steps: 100}
"""
ZERO1 = DeepSpeedChoice(1, False, False, {})


@pytest.fixture
def recipe(tmp_path):
    """The recipe that fits, with overrides."""
    path = tmp_path / "fits.yaml"
    path.write_text(FITS)
    return lambda *overrides: load_recipe(str(path), overrides)


@pytest.mark.parametrize(("overrides", "world"), [
    ([], 1), ([], 8), (["--parallel.tensor=4", "--parallel.sequence=true"], 4), (["--parallel.pipeline=4"], 8),
    (["--model.heads=3", "--model.hidden=66", "--model.ffn=9", "--parallel.tensor=3", "--model.embedding_shard=hidden"], 3),
    (["--model.kv_heads=2", "--parallel.tensor=2", "--parallel.pipeline=2"], 8), (["--parallel.sequence=true"], 1),
    (["--model.arch=gpt", "--model.embedding_shard=hidden", "--schedule.warmup_steps=99"], 2),
    (["--schedule.decay_steps=300", "--schedule.warmup_steps=200"], 1), (["--schedule.decay_steps=300", "--schedule.kind=constant"], 1),
    (["--schedule.kind=wsd", "--schedule.warmup_steps=10"], 1), (["--optimizer.tangent=true", "--model.update=slerp"], 1),
    (["--model.rope_scaling.kind=ntk", "--model.rope_scaling.factor=2"], 1),
    (["--model.rope_scaling={kind: yarn, factor: 2.5, original_context: 16}"], 1),
])
def test_what_fits_passes(recipe, overrides, world):
    assert problems(recipe(*overrides), ZERO1, world) == []


@pytest.mark.parametrize(("overrides", "world", "said"), [
    (["--training.profile.steps=[5]"], 1, "training.profile.steps = [5]: must be the first step and the last one, such as [10, 12]"),
    (["--training.profile.steps=[5, 4]"], 1, "training.profile.steps = [5, 4]: must be"),
    (["--training.profile.steps=[101, 102]"], 1, "training.profile.steps = [101, 102]: the run ends at training.steps = 100"),
    (["--training.profile.ranks=[0, 2]"], 2, "training.profile.ranks = [0, 2]: there is no rank 2 of 2; choose from 0 to 1"),
    (["--training.offload_activations=true"], 1, "training.offload_activations = true: what goes to host memory"),
    (["--training.offload_activations=true", "--training.recompute=selective"], 1, "training.offload_activations = true: what goes"),
    (["--training.ffn_chunks=33"], 1, "training.ffn_chunks = 33: a rank has 32 tokens of each sample"),
    (["--model.heads=3"], 1, "model.heads = 3: must divide model.hidden = 64; choose 2 or 4"),
    (["--model.hidden=36", "--model.heads=4"], 1, "model.heads = 4: a head of 9 is odd"),
    (["--model.kv_heads=3"], 1, "model.kv_heads = 3: must divide model.heads = 4; choose 2 or 4"),
    (["--parallel.tensor=8"], 8, "parallel.tensor = 8: must divide model.heads = 4; choose 4"),
    (["--model.kv_heads=2", "--parallel.tensor=4"], 4, "parallel.tensor = 4: must divide model.kv_heads = 2; choose 2"),
    (["--model.ffn=6", "--parallel.tensor=4"], 4, "parallel.tensor = 4: must divide model.ffn = 6; choose 3 or 6"),
    (["--model.context=30", "--parallel.tensor=4", "--parallel.sequence=true"], 4, "model.context = 30: must be a multiple of 4"),
    (["--model.context=36", "--parallel.context=2", "--parallel.context_kind=ring", "--parallel.tensor=2", "--parallel.sequence=true"], 4,
     "model.context = 36: must be a multiple of 8 (parallel.tensor = 2 with sequence: true, parallel.context = 2, two runs"),
    (["--parallel.context=8"], 8, "parallel.context = 8: must divide the 4 heads of a tensor rank where attention is divided by heads "
     "(parallel.context_kind: ulysses); choose 4, or context_kind: ring"),
    (["--parallel.context=4", "--parallel.tensor=2"], 8, "parallel.context = 4: must divide the 2 heads of a tensor rank"),
    (["--parallel.pipeline=8"], 8, "parallel.pipeline = 8: more stages than model.layers = 4; choose 1 to 4"),
    (["--parallel.tensor=2"], 3, "parallel.tensor = 2, parallel.pipeline = 1: their product 2 must divide"),
    (["--training.global_batch=17"], 2, "training.global_batch = 17: must be a multiple of training.micro_batch = 2 times 2 "
     "data parallel ranks; choose 16 or 20"),
    (["--training.global_batch=2"], 2, "training.global_batch = 2: must be a multiple of training.micro_batch = 2 times 2 data "
     "parallel ranks; choose 4"),
    (["--schedule.warmup_steps=100"], 1, "schedule.warmup_steps = 100: must be less than training.steps = 100; choose 0 to 99"),
    (["--schedule.warmup_steps=50", "--schedule.decay_steps=50"], 1, "schedule.warmup_steps = 50: must be less than schedule"),
    (["--schedule.decay_steps=300", "--schedule.warmup_steps=300"], 1, "schedule.warmup_steps = 300: must be less than schedule"),
    (["--schedule.min_lr=1"], 1, "schedule.min_lr = 1.0: above optimizer.lr = 0.0015"),
    (["--optimizer.tangent=true", "--model.arch=gpt"], 1, "optimizer.tangent = true: only an nGPT has weights on the sphere"),
    (["--training.eval_every=5"], 1, "training.eval_every = 5: data.valid is empty"),
    (["--model.rope_scaling.factor=2"], 1, "model.rope_scaling.factor = 2: model.rope_scaling.kind is none; choose kind linear"),
    (["--model.rope_scaling.kind=linear"], 1, "model.rope_scaling.factor = 1: model.rope_scaling.kind = linear needs one above 1"),
    (["--model.rope_scaling={kind: yarn, factor: 2}"], 1, "model.rope_scaling.original_context = null: yarn needs the context"),
    (["--model.rope_scaling={kind: ntk, factor: 2, original_context: 9}"], 1, "model.rope_scaling.original_context = 9: only yarn"),
    (["--model.rope_scaling={kind: yarn, factor: 2, original_context: 9}", "--model.rope_base=1"], 1, "model.rope_base = 1: yarn goes"),
    (["--model.rope_scaling={kind: ntk, factor: 2}", "--model.heads=32"], 1, "model.rope_scaling.kind = ntk: a head of 2 has one"),
    (["--checkpoint.initial=m", "--checkpoint.resume=c"], 1, "checkpoint.initial = m: a run that resumes c"),
])
def test_what_does_not_fit_is_one_line(recipe, overrides, world, said):
    found = problems(recipe(*overrides), ZERO1, world)
    assert len(found) == 1 and found[0].startswith(said), found


@pytest.mark.parametrize(("choice", "overrides", "said"), [
    (DeepSpeedChoice(2, False, False, {}), ["--parallel.pipeline=2"], "ZeRO-2 with parallel.pipeline = 2"),
    (DeepSpeedChoice(3, True, False, {}), ["--parallel.pipeline=2"], "choose bf16-zero1.json, or parallel.pipeline: 1"),
    (DeepSpeedChoice(1, True, True, {}), ["--parallel.pipeline=2"], "choose a file without offload"),
    (DeepSpeedChoice(0, True, False, {}), [], "choose bf16-zero1.json"),
])
def test_combinations_that_deepspeed_cannot_run(recipe, choice, overrides, said):
    found = problems(recipe(*overrides), choice, 2)
    assert len(found) == 1 and said in found[0], found


def test_rules_without_deepspeeds_choice_and_several_at_once(recipe):
    found = problems(recipe("--model.heads=3", "--training.global_batch=17", "--parallel.pipeline=9"), None, 9)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("world", "tensor", "fits"), [(3, 1, "2 or 4"), (5, 1, "4 or 8"), (12, 1, "8"), (8, 1, None), (6, 2, "4 or 8"), (7, 2, "4 or 8")]
)
def test_a_number_of_ranks_that_does_not_fit_is_told_the_ones_that_do(recipe, world, tensor, fits):
    """As after a loss of nodes."""
    told = problems(recipe(f"--parallel.tensor={tensor}"), ZERO1, world)
    assert told == [] if fits is None else told[0].endswith(f"; as the recipe is, {fits} ranks fit")
