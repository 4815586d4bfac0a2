"""A run goes on at a longer context, in another layout: the same weights and moments, the curve goes on, the data as they were said."""

import json

import pytest
import torch

from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.batches import training_batches
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from tests.distributed.layouts import metrics
from tests.distributed.ranks import train
from tests.distributed.resumed import look_after_loading

pytestmark = pytest.mark.usefixtures("in_repository")
SHORT, STEP = ["--model.context=64", "--training.global_batch=12", "--training.steps=12"], 12
LONG = ["--model.context=128", "--training.global_batch=8", "--training.micro_batch=4", "--model.rope_base=40000"]
LONG += ["--model.rope_scaling={kind: yarn, factor: 2, original_context: 64}"]


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_from_64_to_128(corpus, tmp_path, arch):
    recipe = [str(corpus / "recipe.yaml"), f"--model.arch={arch}", "--optimizer.lr=0.001", "--schedule.kind=constant"]
    first = train(1, [*recipe, *SHORT], tmp_path / "run").output
    checkpoint = first / "checkpoints" / f"step-{STEP:08}"
    short = metrics(first)

    longer, resume = [*recipe, *LONG, "--parallel.tensor=2"], f"--checkpoint.resume={checkpoint}"
    once, twice = tmp_path / "once", tmp_path / "twice"  # to step 18 at once, and with a stop in between
    once.mkdir()
    twice.mkdir()
    turns = [([*longer, resume, "--training.steps=15"], twice), ([*longer, "--training.steps=18"], twice)]
    train(2, [*longer, resume, "--training.steps=18"], once, before=look_after_loading, others=turns, seconds=280)

    reports = [json.loads((once / f"loaded-{rank}.json").read_text()) for rank in range(2)]
    assert all(report["step"] == STEP and report["problems"] == [] for report in reports), reports
    lines = metrics(once)
    assert [line["step"] for line in lines] == list(range(STEP + 1, 19))
    assert [line["tokens"] for line in lines] == [STEP * 12 * 64 + step * 8 * 128 for step in range(1, 7)]
    assert lines[0]["loss"] == pytest.approx(first_loss(recipe, checkpoint), rel=1e-5)
    assert lines[0]["loss"] < short[0]["loss"] - 0.5 * (short[0]["loss"] - short[-1]["loss"]), "the curve is meant to go on"
    again = metrics(twice)
    assert [line["loss"] for line in again] == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    told = (once.parent / "once.rank0").read_text()  # of all three starts, two of which begin the phase
    assert told.count("model.context: 64 → 128: a phase begins after step 12") == told.count("model.rope_base: 10000.0 → 40000.0") == 2


@torch.no_grad()
def first_loss(recipe, checkpoint) -> float:
    """Of the stored weights, at the new context, on the samples of the phase's first step, without training's code."""
    wanted = load_recipe(recipe[0], [*recipe[1:], *LONG])
    rows = training_batches(wanted).after(STEP).rows(STEP + 1, 0, 8).tokens
    stored = load_model(checkpoint)
    module = Decoder(Blueprint(wanted.model, stored.vocabulary))
    module.load_state_dict(stored.module.state_dict())
    tokens = torch.from_numpy(rows).long()
    return torch.nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
