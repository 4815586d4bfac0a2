"""`pg19`: books to datasets that know their words."""

import csv
import json

import numpy as np
import pytest

from data_tools.__main__ import app
from data_tools.pg19 import convert
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError, DataError
from tests.data.small_data import make_tokenizer

BOOKS = {
    "train": {"101": "It was a dark\nand stormy  night.\n" * 30, "9": "Once upon a time. " * 40},
    "test": {"7": "\ufeffBook seven, told twice.\n\n" * 20, "8": "", "88": "One more\u00a0book, in test. " * 10},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    lines = [line for books in BOOKS.values() for text in books.values() for line in text.split("\n")]
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small.model", lines, vocab_size=300)


@pytest.fixture
def pg19(tmp_path):
    """A directory of PG19's layout, without the split `validation`."""
    directory = tmp_path / "pg19"
    for split, books in BOOKS.items():
        (directory / split).mkdir(parents=True)
        for number, text in books.items():
            (directory / split / f"{number}.txt").write_text(text, "utf-8")
    (directory / "metadata.csv").write_text('101,"A Night, Dark",1830,http://x/101\n7,Seven,1917,http://x/7\n', "utf-8")
    return directory


def test_books_become_documents_that_know_their_words(pg19, tokenizer, tmp_path, capsys):
    asked = ["pg19", "--input", str(pg19), "--tokenizer", tokenizer, "--output", str(tmp_path / "out"), "--workers", "1"]
    app(asked, standalone_mode=False)
    printed = capsys.readouterr().out.splitlines()
    model = Tokenizer(tokenizer)
    for line, (split, books) in zip(printed, BOOKS.items(), strict=True):
        texts = {number: text.removeprefix("\ufeff") for number, text in sorted(books.items()) if text}
        dataset, meta = IndexedDataset(f"{tmp_path}/out-{split}"), json.loads((tmp_path / f"out-{split}.meta.json").read_text())
        assert dataset.documents == len(texts)
        for number, text in enumerate(texts.values()):
            assert np.array_equal(dataset.document(number), [*model.encode(text), model.eos_id])
        assert meta["document_words"] == [len(text.split()) for text in texts.values()]
        assert line == f"{tmp_path}/out-{split}: 2 books, {dataset.tokens:,} tokens, {sum(meta['document_words']):,} words"
        with (tmp_path / f"out-{split}.books.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["book"] for row in rows] == list(texts)
        assert [int(row["tokens"]) for row in rows] == [len(dataset.document(number)) for number in range(len(texts))]
        assert rows[0] | {"tokens": ""} == {
            "document": "0", "book": next(iter(texts)), "tokens": "", "words": str(meta["document_words"][0]),
            **({"title": "A Night, Dark", "year": "1830"} if split == "train" else {"title": "Seven", "year": "1917"}),
        }
    assert not list(tmp_path.glob("out-validation*"))


def test_again_it_goes_on_where_it_was(pg19, tokenizer, tmp_path):
    """Killed between the tokens and the words, and complete."""
    metas = convert(pg19, tokenizer, f"{tmp_path}/out", 1)
    before = {path: path.read_bytes() for path in tmp_path.glob("out-*")}
    meta = json.loads((tmp_path / "out-test.meta.json").read_text())
    del meta["document_words"]
    (tmp_path / "out-test.meta.json").write_text(json.dumps(meta))
    (tmp_path / "out-test.books.csv").unlink()
    assert convert(pg19, tokenizer, f"{tmp_path}/out", 1) == metas
    assert {path: path.read_bytes() for path in tmp_path.glob("out-*")} == before


def test_mistakes(pg19, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"--input .*nowhere: no book in train/\*.txt, validation/\*.txt, test/\*.txt; give"):
        convert(tmp_path / "nowhere", tokenizer, f"{tmp_path}/out", 1)
    (pg19 / "metadata.csv").write_text("101,Night,1830,x\n7,Seven\n")
    with pytest.raises(DataError, match=r"metadata\.csv: line 2 has fewer than three columns"):
        convert(pg19, tokenizer, f"{tmp_path}/out", 1)
    (pg19 / "metadata.csv").unlink()
    convert(pg19, tokenizer, f"{tmp_path}/out", 1)
    with (tmp_path / "out-test.books.csv").open() as file:
        assert [row["title"] for row in csv.DictReader(file)] == ["", ""]
