"""`train-tokenizer`: lossless models with explicit ids, from any input, at any feasible size."""

import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from data_tools import vocabulary
from data_tools.sources import recognise_all
from data_tools.train_tokenizer import Options, Sample
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
    (["--vocab_size", 500, "--text_key", "none"], "c.jsonl: line 1: has no key 'none' (--text_key)"),
    (["--vocab_size", 500, "--text_key", "none", "--skip_malformed"], "no text found, 6 malformed lines left out"),
    (["--vocab_size", 500, "--output", "/proc/none/t"], "/proc/none"),
])
def test_mistakes(tmp_path, corpus, run, options, message):
    outcome = run("train-tokenizer", "--input", corpus, "--output", tmp_path / "t", *options)
    assert outcome.code and message in outcome.err and "Traceback" not in outcome.err
    assert not list(tmp_path.glob("t.*"))


def train(run, tmp_path, data, size, *options, name="a.txt"):
    (tmp_path / name).write_bytes(data)
    return run("train-tokenizer", "--input", tmp_path / name, "--vocab_size", size, "--output", tmp_path / "t", *options)


VARIED = "".join(chr(0x4E00 + (i * i) % 997) + "ab "[i % 3] for i in range(3000)).encode()


@pytest.mark.parametrize("model", ["bpe", "unigram"])
@pytest.mark.parametrize("data", [b"a", b"ab" * 50, b"a b c\n" * 3, "漢字かな".encode() * 9, VARIED],
                         ids=["one", "two", "words", "kana", "varied"])
def test_the_size_that_is_named_is_one_that_works(tmp_path, run, model, data):
    """And every size below it, of BPE, down to the least."""
    outcome = train(run, tmp_path, data, 5000, "--model", model)
    [size] = re.findall(r"--vocab_size 5000: the text fills (\d+) entries of a .* model; give (?=\1,)", outcome.err)
    assert outcome.code == 2 and outcome.err.count("the text fills") == 1
    for fewer in {int(size), 262, *(range(262, int(size), max(1, int(size) // 7)) if model == "bpe" else ())}:
        outcome = train(run, tmp_path, data, fewer, "--model", model)
        assert outcome.code == 0 and Tokenizer(tmp_path / "t.model").size == fewer, outcome.err
    assert train(run, tmp_path, data, 261).code == 2


@pytest.mark.parametrize(("data", "said"), [
    (b"\n\n\n", "the text is nothing but newlines"), (b"", "no text found"),
    ("caf\xe9 noir\n".encode("latin-1") * 9, "a.txt: document 1: invalid UTF-8 at byte 4"),
])
def test_text_that_is_none(tmp_path, run, data, said):
    outcome = train(run, tmp_path, data, 300)
    assert outcome.code == 2 and said in outcome.err and "Traceback" not in outcome.err and not (tmp_path / "t.model").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_malformed_lines_stop_it_or_are_left_out_and_counted(tmp_path, run, corpus, monkeypatch, packed):
    monkeypatch.setattr("data_tools.train_tokenizer.SAMPLE_CHUNK", 3000)
    good, pack = corpus.read_bytes(), gzip.compress if packed else bytes
    data = good + b"[" * 100_000 + b"\n" + good + b"bad\n"
    outcome = train(run, tmp_path, pack(data), 400, name="a.jsonl")
    assert outcome.code == 2 and f"{tmp_path}/a.jsonl: line {good.count(bytes([10])) + 1}: nested too deeply" in outcome.err
    assert "leave such lines out with --skip_malformed" in outcome.err
    outcome = train(run, tmp_path, pack(data), 400, "--skip_malformed", name="a.jsonl")
    assert outcome.code == 0 and "2 malformed left out of the sample" in outcome.out
    assert f"skipped: {tmp_path}/a.jsonl: line {2 * good.count(bytes([10])) + 2}: not JSON" in outcome.err


def test_the_sample_is_bounded_by_what_the_text_decodes_to(tmp_path):
    rows = [f"{number} " + "word " * 400 for number in range(20)] * 500
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet", compression="zstd")
    sample = Sample(recognise_all([str(tmp_path / "a.parquet")], None), Options([], "", 300, sample_bytes=1_000_000))
    training, held_out = sample.texts()
    assert 1_000_000 <= sum(map(len, training + held_out)) <= 2_000_000 < sum(map(len, rows)) / 5
    assert {text.split()[0] for text in training} == {str(number) for number in range(20)}


def test_a_sign_of_life(tmp_path, run, monkeypatch, corpus):
    monkeypatch.setattr(vocabulary, "SECONDS_BETWEEN_SIGNS", 0.01)
    outcome = run("train-tokenizer", "--input", corpus, "--vocab_size", 400, "--output", tmp_path / "t", "--model", "unigram")
    assert outcome.code == 0 and re.search(r"^training a unigram model of 400 entries: \d+ s so far$", outcome.err, re.MULTILINE)


def test_the_one_character_that_comes_back_as_another(tmp_path, run, corpus):
    run("train-tokenizer", "--input", corpus, "--vocab_size", 400, "--output", tmp_path / "t")
    tokenizer = Tokenizer(tmp_path / "t.model")
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b" and "U+2581" in run("train-tokenizer", "--help").out
