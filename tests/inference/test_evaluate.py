"""`ngpt evaluate`: the loss of every window, once."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.config.recipe import RopeScaling
from megatron_ngpt.errors import DataError
from megatron_ngpt.inference.evaluate import evaluate
from megatron_ngpt.inference.load import load_model
from tests.checkpoint.trained import make_model, save_run
from tests.data.small_data import write_dataset


def window_losses(world, context):
    """Each window's mean loss by the module itself, window after window along the tape."""
    tape = torch.tensor(np.concatenate(world.documents))
    losses = []
    for start in range(0, len(tape) - context, context):
        window = tape[start : start + context + 1]
        if len(window) == context + 1:
            with torch.no_grad():
                losses.append(torch.nn.functional.cross_entropy(world.module(window[None, :-1])[0], window[1:]).item())
    return losses


@pytest.mark.parametrize("form", ["run", "exported"])
@pytest.mark.parametrize("context", [None, 9])
def test_whole_dataset(world, form, context):
    result = evaluate(load_model(getattr(world, form)), world.data, context)
    losses = window_losses(world, context or 16)
    assert len(losses) % 8, "the last batch is meant to be a part of one"
    assert result["tokens"] == len(losses) * (context or 16)
    assert result["context"] == (context or 16)
    assert result["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))


def test_batches_limit_what_is_read(world):
    loaded = load_model(world.run)
    part, whole = evaluate(loaded, world.data, batches=1), evaluate(loaded, world.data)
    assert part["tokens"] == 8 * 16 < whole["tokens"]
    assert part["loss"] != whole["loss"]
    assert evaluate(loaded, world.data, batches=10_000) == whole


def test_documents_are_kept_apart_as_in_training(world, tmp_path):
    """Under `mask` two documents in a window have the losses that each has alone in one."""
    save_run(tmp_path / "run", make_model(vocabulary=world.tokenizer.size), boundaries="mask")
    documents = [[5, 6, 7, 8, 9, 2], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]
    result = evaluate(load_model(tmp_path / "run", mask_documents=None), write_dataset(tmp_path / "two", documents))
    total = 0.0
    for document, following in zip(documents, (10, None), strict=True):
        inputs = torch.tensor([document if following else document[:-1]])
        targets = torch.tensor(document[1:] + ([following] if following else []))
        with torch.no_grad():
            total += torch.nn.functional.cross_entropy(world.module(inputs)[0], targets, reduction="sum").item()
    assert result["tokens"] == 16
    assert result["loss"] == pytest.approx(total / 16, abs=1e-5)


@pytest.mark.parametrize("problem", ["missing", "short", "tokenizer", "vocabulary"])
def test_datasets_that_do_not_fit(world, tmp_path, problem):
    documents, meta = {"short": ([[1, 2, 3]], {}), "tokenizer": ([[1] * 40], {"tokenizer_sha256": "0" * 64})}.get(
        problem, ([[60_000] * 40], {})
    )
    prefix = str(tmp_path / "gone") if problem == "missing" else write_dataset(tmp_path / "data", documents, **meta)
    with pytest.raises(DataError) as error:
        evaluate(load_model(world.run), prefix)
    said = {"missing": "--data: ", "short": "needs 17", "tokenizer": "another tokenizer", "vocabulary": "60000"}
    assert said[problem] in str(error.value)


def test_command_prints_one_json_object(world, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ngpt", "evaluate", str(world.run), "--data", world.data, "--batches", "1"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    assert json.loads(out) == evaluate(load_model(world.run), world.data, batches=1)
    assert list(json.loads(out)) == ["loss", "perplexity", "tokens", "context"]
    longer = ["--context", "48", "--rope_scaling", "yarn", "--rope_factor", "3"]
    monkeypatch.setattr(sys, "argv", ["ngpt", "evaluate", str(world.run), "--data", world.data, *longer])
    assert cli.main() == 0
    scaled = load_model(world.run, scaling=RopeScaling(kind="yarn", factor=3.0, original_context=16))
    result, plain = json.loads(capsys.readouterr().out), evaluate(load_model(world.run), world.data, 48)
    assert result == evaluate(scaled, world.data, 48) and result["loss"] != plain["loss"] and result["tokens"] == plain["tokens"]
    for half in (longer[2:4], longer[4:]):
        monkeypatch.setattr(sys, "argv", ["ngpt", "evaluate", str(world.run), "--data", world.data, *half])
        assert cli.main() == 2
        assert capsys.readouterr().err == f"{' '.join(half)}: --rope_scaling linear, ntk or yarn and --rope_factor, the context over the " \
            "model's, go together\n"
    monkeypatch.setattr(sys, "argv", ["ngpt", "evaluate", "nowhere", "--data", world.data])
    assert cli.main() == 2
    assert capsys.readouterr().err.startswith("MODEL: nowhere is no checkpoint")
