"""`train-tokenizer`: lossless models with explicit ids, from any input, at any feasible size."""

import json

import pytest

from megatron_ngpt.data.tokenizer import Tokenizer


@pytest.fixture()
def corpus(tmp_path, source_texts):
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in source_texts))
    return path


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_any_text_survives(tmp_path, corpus, run, model):
    outcome = run("train-tokenizer", "--input", corpus, "--vocab_size", 500, "--output", tmp_path / "t", "--model", model)
    assert outcome.code == 0 and "500 entries" in outcome.out and "bytes a token" in outcome.out
    tokenizer = Tokenizer(tmp_path / "t.model")
    assert (tokenizer.size, tokenizer.eos_id, tokenizer.pad_id) == (500, 2, 3)
    text = " a\n\n\n    b\t\tc  \r\n é漢😀\x01"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "\n" in [tokenizer.piece(token) for token in tokenizer.encode(text)]
    runs = [tokenizer.piece(token) for token in tokenizer.encode("\n        x")]
    assert max(piece.count("▁") for piece in runs) > 1


def test_plain_text_and_the_smallest_size(tmp_path, source_texts, run):
    (tmp_path / "a.txt").write_text(source_texts[0])
    (tmp_path / "b.txt").write_text(source_texts[1] + "漢字" * 50)
    files = tmp_path / "a.txt", tmp_path / "b.txt"
    outcome = run("train-tokenizer", "--input", *files, "--vocab_size", 263, "--output", tmp_path / "t")
    assert outcome.code == 0 and Tokenizer(tmp_path / "t.model").size == 263


@pytest.mark.parametrize("options, message", [
    (["--vocab_size", 200], "--vocab_size 200: too small"),
    (["--vocab_size", 100000], "--vocab_size 100000: the text fills"),
    (["--vocab_size", 500, "--model", "word"], "--model word: choose from bpe, unigram"),
    (["--vocab_size", 500, "--sample_bytes", 0], "Invalid value for '--sample_bytes'"),
    (["--vocab_size", 99999999999], "Invalid value for '--vocab_size'"),
    (["--vocab_size", 500, "--text_key", "none"], "no text found"),
])
def test_mistakes(tmp_path, corpus, run, options, message):
    outcome = run("train-tokenizer", "--input", corpus, "--output", tmp_path / "t", *options)
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err
    assert not list(tmp_path.glob("t.*"))
