"""`show-batch` writes what the trainer reads."""

import numpy as np
import yaml
from small_data import numbered_documents, write_dataset

from data_tools import show_batch
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.batches import training_batches
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.training.phase import Phase


def write_recipe(folder, tokenizer_path) -> str:
    prefix = write_dataset(folder / "d", numbered_documents([300]))
    sections = {
        "model": {"context": 8, "vocab": 400},
        "data": {"tokenizer": tokenizer_path, "train": [{"prefix": prefix}]},
        "training": {"output": str(folder / "run"), "global_batch": 6},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return str(folder / "recipe.yaml")


def test_it_writes_the_trainers_rows(tmp_path, tokenizer_path, run):
    path = write_recipe(tmp_path, tokenizer_path)
    overrides = ["--training.seed=5", "--training.global_batch=7"]
    outcome = run("show-batch", path, "--step", 3, "--output", tmp_path / "out.npy", *overrides)
    assert outcome.code == 0, outcome.err
    shown = np.load(tmp_path / "out.npy")
    recipe = load_recipe(path, overrides)
    assert shown.dtype == np.int32 and shown.shape == (7, 9)
    assert np.array_equal(shown, training_batches(recipe).rows(3, 0, 7).tokens)


def test_it_shows_batches_whatever_was_skipped(tmp_path, tokenizer_path, run, monkeypatch):
    """As a checkpoint of the run says: batch 3 is skipped, and step 3 reads batch 4."""
    path = write_recipe(tmp_path, tokenizer_path)
    monkeypatch.setattr(show_batch, "phases_of", lambda recipe, _: [Phase(0, 8, 6, skipped=((3, 3),))])
    for number, (option, wanted) in enumerate(((("--step", 3), 4), (("--batch", 3), 3), (("--step", 2), 2))):
        outcome = run("show-batch", path, *option, "--output", tmp_path / f"{number}.npy")
        assert outcome.code == 0 and f"{option[0][2:]} {option[1]}" in outcome.out
        assert np.array_equal(np.load(tmp_path / f"{number}.npy"), training_batches(load_recipe(path)).rows(wanted, 0, 6).tokens)
    for given in ((), ("--step", 1, "--batch", 1)):
        outcome = run("show-batch", path, *given, "--decode")
        assert outcome.code == 2 and "give --step N, or --batch N" in outcome.err


def test_mistakes(tmp_path, tokenizer_path, run):
    path = write_recipe(tmp_path, tokenizer_path)
    for arguments, message in (
        *(([path, "--step", step], "Invalid value for '--step'") for step in (0, "1e22", 10**22, "9" * 5_000)),
        ([path, "--step", 1, "--model.contxt=3"], "contxt"),
        (["none.yaml", "--step", 1], "none.yaml"),
    ):
        outcome = run("show-batch", *arguments, "--output", tmp_path / "out.npy")
        assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "out.npy").exists()


def test_decoded_rows_name_their_document(tmp_path, tokenizer_path, run):
    path = write_recipe(tmp_path, tokenizer_path)
    outcome = run("show-batch", path, "--step", 1, "--decode")
    rows = training_batches(load_recipe(path)).rows(1, 0, 6)
    tokenizer = Tokenizer(tokenizer_path)
    assert outcome.code == 0
    for number, tokens in enumerate(rows.tokens):
        head = f"--- row {number}: {tmp_path}/d, document 0 from token {tokens[0]} on"
        assert f"{head}\n{tokenizer.decode(tokens)}\n" in outcome.out
    assert run("show-batch", path, "--step", 1).code == 2
