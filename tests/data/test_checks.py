"""Everything wrong with a recipe's data is told at once, each problem in one line that names key, value and remedy."""

import subprocess
import sys

import numpy as np
import pytest
from small_data import make_tokenizer, numbered_documents, recipe, write_dataset

from megatron_ngpt.data.batches import open_data, training_batches, validation_batches
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import DataError


@pytest.fixture()
def good(tmp_path, tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    meta = {"tokenizer_sha256": tokenizer.sha256, "vocab_size": tokenizer.size}
    return write_dataset(tmp_path / "good", numbered_documents([20] * 10), **meta)


def check_data(recipe):
    """The problems of its data."""
    return open_data(recipe)[1]


def one(problems, *words):
    assert len(problems) == 1, problems
    for word in words:
        assert word in problems[0], problems[0]
    assert "\n" not in problems[0]


def test_a_good_recipe_has_no_problems(good, tokenizer_path):
    entry = {"prefix": good, "split": 0.8}
    assert check_data(recipe([entry], [entry], tokenizer=tokenizer_path, vocab=None)) == []


def test_missing_dataset(tmp_path, tokenizer_path):
    one(check_data(recipe([{"prefix": f"{tmp_path}/none"}], tokenizer=tokenizer_path)), "data.train.0.prefix", "none.idx")


def test_glob_that_matches_nothing(tmp_path, tokenizer_path):
    one(check_data(recipe([{"prefix": f"{tmp_path}/*"}], tokenizer=tokenizer_path)), "data.train.0.prefix", "matches no .idx")


def test_missing_and_broken_tokenizer(good, tmp_path):
    one(check_data(recipe([{"prefix": good}], tokenizer=tmp_path / "t.model")), "data.tokenizer", "t.model", "No such file")
    for content in (b"", b"no model"):
        (tmp_path / "t.model").write_bytes(content)
        problems = check_data(recipe([{"prefix": good}], tokenizer=tmp_path / "t.model"))
        one(problems, "data.tokenizer", "not a SentencePiece model")


def test_tokenizer_without_an_end(tmp_path, source_lines):
    path = make_tokenizer(tmp_path / "t.model", source_lines, eos_id=-1)
    with pytest.raises(DataError, match="no end-of-sentence id"):
        Tokenizer(path)


def test_another_tokenizer(good, tmp_path, source_lines):
    other = make_tokenizer(tmp_path / "o.model", source_lines, 420)
    problems = check_data(recipe([{"prefix": good}], tokenizer=other, vocab=None))
    one(problems, "data.tokenizer", "not the tokenizer that made", good)


def test_vocabulary_smaller_than_the_tokenizer(good, tokenizer_path):
    problems = check_data(recipe([{"prefix": good}], tokenizer=tokenizer_path, vocab=399))
    assert len(problems) == 2
    assert all(problem.startswith("model.vocab: 399") for problem in problems)


def test_foreign_pair_with_larger_ids(tmp_path, tokenizer_path):
    prefix = write_dataset(tmp_path / "f", [[1, 2, 5000] * 10], "i4")
    (tmp_path / "f.meta.json").unlink()
    one(check_data(recipe([{"prefix": prefix}], tokenizer=tokenizer_path, vocab=None)), "model.vocab: 400", "reach 5000")


def test_split_that_leaves_no_documents_returns_at_once(tmp_path, tokenizer_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([100]))
    entry = {"prefix": prefix, "split": 0.9}
    one(check_data(recipe([entry], [entry], tokenizer=tokenizer_path)), "data.valid.0.split", "leaves no documents of 1")
    with pytest.raises(DataError, match="leaves no documents"):
        validation_batches(recipe([entry], [entry]))


def test_too_few_tokens(tmp_path, tokenizer_path):
    prefix = write_dataset(tmp_path / "d", numbered_documents([8]))
    problems = check_data(recipe([{"prefix": prefix}], tokenizer=tokenizer_path))
    one(problems, "data.train.0.prefix", "8 tokens", "model.context + 1 = 9")


@pytest.mark.parametrize("train, valid, overlapping", [
    (None, None, True), (0.8, None, True), (None, 0.8, True), (0.8, 0.5, True), (0.5, 0.8, False), (0.8, 0.8, False)])
def test_overlapping_splits(good, tokenizer_path, train, valid, overlapping):
    entries = [{"prefix": good, "split": train}], [{"prefix": good.replace("/good", "/*"), "split": valid}]
    problems = check_data(recipe(*entries, tokenizer=tokenizer_path))
    if overlapping:
        one(problems, "data.valid.0.split", "shares documents", "data.train.0")
    else:
        assert problems == []


def test_names_weights_and_misplaced_keys(good, tokenizer_path, tmp_path):
    entry = {"prefix": good, "split": 0.5}
    problems = check_data(recipe(
        [{**entry, "weight": 1.0}, entry], [entry, {**entry, "weight": 2.0}], tokenizer=tokenizer_path))
    assert {problem.split(":")[0] for problem in problems} == {
        "data.train.1.weight", "data.valid.1.name", "data.valid.1.weight"}
    with pytest.raises(DataError, match="good is taken"):
        validation_batches(recipe([entry], [entry, entry]))
    with pytest.raises(DataError, match="weight"):
        training_batches(recipe([{**entry, "weight": 1.0}, entry]))


def test_several_problems_at_once(tmp_path):
    problems = check_data(recipe([{"prefix": f"{tmp_path}/a"}, {"prefix": f"{tmp_path}/b"}], tokenizer=tmp_path / "t.model"))
    assert [problem.split(":")[0] for problem in problems] == ["data.tokenizer", "data.train.0.prefix", "data.train.1.prefix"]


def test_broken_meta_is_named(good, tokenizer_path):
    for content in ("{", "[]"):
        with open(f"{good}.meta.json", "w") as file:
            file.write(content)
        one(check_data(recipe([{"prefix": good}], tokenizer=tokenizer_path)), "data.train.0.prefix", "good.meta.json")


def test_tokenizer_encodes_exactly_and_ends_documents(tokenizer_path):
    tokenizer = Tokenizer(tokenizer_path)
    texts = ["def f(x):\n    return x", "", "漢字\0"]
    ended = tokenizer.encode_ended(texts)
    assert [tokens.tolist() for tokens in ended] == [[*tokenizer.encode(text).tolist(), tokenizer.eos_id] for text in texts]
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b" and len(tokenizer.byte_tokens()) == 256
    assert np.array_equal(tokenizer.encode("x"), Tokenizer(tokenizer_path).encode("x")) and tokenizer.pad_id == 3


def test_the_data_room_does_not_import_torch():
    code = "import sys, megatron_ngpt.data.batches, data_tools.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
