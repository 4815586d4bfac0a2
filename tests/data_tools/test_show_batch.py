"""`show-batch` writes what the trainer reads."""

import numpy as np
import yaml
from small_data import numbered_documents, write_dataset

from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.batches import training_batches
from megatron_ngpt.data.tokenizer import Tokenizer


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
