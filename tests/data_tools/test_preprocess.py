"""`preprocess`: exact tokens in the order of the input, from every kind of file, whatever the number of workers."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import chunks as chunks_module
from data_tools.preprocess import Options, preprocess
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.data.tokenizer import Tokenizer


def json_lines(texts) -> bytes:
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


def documents_of(prefix) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))
    return [dataset.document(i).tolist() for i in range(dataset.documents)]


def expected(tokenizer_path, texts) -> list[list[int]]:
    tokenizer = Tokenizer(tokenizer_path)
    encoded = [tokenizer.encode(text).tolist() for text in texts]
    return [[*tokens, tokenizer.eos_id] for tokens in encoded if tokens]


text_strategy = st.text(st.characters(codec="utf-8"), max_size=60)


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(text_strategy, min_size=1, max_size=30).filter(any), ascii_only=st.booleans(), size=st.integers(1, 200))
def test_round_trip_of_arbitrary_documents(tmp_path_factory, tokenizer_path, texts, ascii_only, size):
    folder = tmp_path_factory.mktemp("round")
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_module.read_chunks, "__defaults__", ((0, 0), size))
        meta = preprocess(Options([str(folder / "a.jsonl")], tokenizer_path, str(folder / "d"), 1))
    assert documents_of(folder / "d") == expected(tokenizer_path, texts)
    tokenizer = Tokenizer(tokenizer_path)
    kept = [text for text in texts if text]
    decoded = [tokenizer.decode(tokens[:-1]) for tokens in documents_of(folder / "d")]
    assert decoded == [text.replace("▁", " ") for text in kept]        # SentencePiece writes spaces so
    assert meta["empty_documents"] == len(texts) - len(kept)


def write_as(kind, folder, texts) -> list[str]:
    """The texts in files of one kind; returns the options that read them."""
    lines = json_lines(texts)
    if kind == "jsonl":
        (folder / "in.jsonl").write_bytes(lines)
    elif kind == "jsonl.gz":
        (folder / "in.jsonl.gz").write_bytes(gzip.compress(lines[:5000]) + gzip.compress(lines[5000:]))
    elif kind == "jsonl.zst":
        compress = zstandard.ZstdCompressor().compress
        (folder / "in.jsonl.zst").write_bytes(compress(lines[:5000]) + compress(lines[5000:]))
    elif kind == "parquet":
        table = pyarrow.table({"id": range(len(texts)), "text": texts})
        pyarrow.parquet.write_table(table, folder / "in.parquet", row_group_size=4)
    elif kind == "txt":
        for i, text in enumerate(texts):
            (folder / f"in.{i:02}.txt").write_bytes(text.encode())
        return ["--input", *(folder / f"in.{i:02}.txt" for i in range(len(texts)))]
    elif kind == "txt.zst":
        (folder / "in.txt.zst").write_bytes(zstandard.ZstdCompressor().compress("<|>".join(texts).encode()))
        return ["--input", folder / "in.txt.zst", "--split_on", "<|>"]
    return ["--input", f"{folder}/in.*"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "txt.zst"])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_of_file(tmp_path, tokenizer_path, source_texts, run, monkeypatch, kind, workers):
    monkeypatch.setattr(chunks_module.read_chunks, "__defaults__", ((0, 0), 3000))
    texts = [*source_texts, "", "  two  spaces\r\n", "漢字 é\t"]
    options = write_as(kind, tmp_path, texts)
    outcome = run("preprocess", *options, "--tokenizer", tokenizer_path, "--output", tmp_path / "d", "--workers", workers)
    assert (outcome.code, outcome.out.split(":")[0]) == (0, str(tmp_path / "d")), outcome.err
    assert documents_of(tmp_path / "d") == expected(tokenizer_path, texts)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.tmp"))


def test_meta_says_what_was_made(tmp_path, tokenizer_path, source_texts, run):
    (tmp_path / "a.jsonl").write_bytes(json_lines(source_texts))
    run("preprocess", "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_path, "--output", tmp_path / "d")
    meta, dataset, tokenizer = read_meta(str(tmp_path / "d")), IndexedDataset(str(tmp_path / "d")), Tokenizer(tokenizer_path)
    assert meta["tokenizer_sha256"] == tokenizer.sha256 and meta["vocab_size"] == tokenizer.size
    assert meta["documents"] == dataset.documents == len(source_texts) and meta["tokens"] == dataset.tokens
    assert meta["text_bytes"] == sum(len(text.encode()) for text in source_texts)
    assert dataset.dtype == np.uint16


def test_inputs_in_the_order_given_one_flag_or_several(tmp_path, tokenizer_path, run):
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines([f"file {name}"]))
    together, apart = ["--input", tmp_path / "b.jsonl", tmp_path / "a.jsonl"], []
    for name in "ba":
        apart += ["--input", tmp_path / f"{name}.jsonl"]
    for output, options in (("together", together), ("apart", apart)):
        assert run("preprocess", *options, "--tokenizer", tokenizer_path, "--output", tmp_path / output).code == 0
        assert documents_of(tmp_path / output) == expected(tokenizer_path, ["file b", "file a"])


def test_another_text_key(tmp_path, tokenizer_path, run):
    (tmp_path / "a.jsonl").write_text('{"content": "here", "text": "not here"}\n')
    outcome = run("preprocess", "--input", tmp_path / "a.jsonl", "--tokenizer", tokenizer_path, "--output", tmp_path / "d",
                  "--text_key", "content")
    assert outcome.code == 0 and documents_of(tmp_path / "d") == expected(tokenizer_path, ["here"])


@settings(deadline=None, max_examples=6)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=25), workers=st.integers(2, 4), size=st.integers(20, 400))
def test_any_number_of_workers_gives_the_same_bytes(tmp_path_factory, tokenizer_path, lengths, workers, size):
    folder = tmp_path_factory.mktemp("workers")
    (folder / "a.jsonl").write_bytes(json_lines([f"{i} " + "word " * length for i, length in enumerate(lengths)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_module.read_chunks, "__defaults__", ((0, 0), size))
        patch.setattr("data_tools.encode.group_chunks.__defaults__", (size,))
        for number in (1, workers):
            preprocess(Options([str(folder / "a.jsonl")], tokenizer_path, str(folder / f"d{number}"), number))
    for suffix in (".bin", ".idx", ".meta.json"):
        assert (folder / f"d1{suffix}").read_bytes() == (folder / f"d{workers}{suffix}").read_bytes()
