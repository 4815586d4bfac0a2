"""`pg19`: a directory of books, as PG19 comes, to a dataset a split: a document a book, and the words of each, for perplexity a word.

DIR holds train/, validation/ and test/, or some of them, with a text file NUMBER.txt a book, and metadata.csv with a line
NUMBER,TITLE,YEAR,ADDRESS a book and no heading.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np

from data_tools.preprocess import Options, preprocess
from megatron_ngpt.data.indexed import WORDS, IndexedDataset, pair_paths, read_meta
from megatron_ngpt.data.writer import write_text
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.foreign import what_is_wrong

SPLITS = ("train", "validation", "test")
METADATA = "metadata.csv"
BOOKS = ".books.csv"


def convert(directory: Path, tokenizer: str, output: str, workers: int) -> dict[str, dict]:
    """Write `OUTPUT-SPLIT` and `OUTPUT-SPLIT.books.csv` for each split that is there; return the metas by prefix.

    What is there already, made from the same books, is left as it is. Raises ConfigError and DataError as `preprocess` does.
    """
    splits = {split: files for split in SPLITS if (files := sorted((directory / split).glob("*.txt")))}
    if not splits:
        raise ConfigError(f"--input {directory}: no book in {', '.join(f'{split}/*.txt' for split in SPLITS)}; "
                          "give the directory that holds PG19's folders")
    titles = _read_titles(directory / METADATA)
    metas = {}
    for split, files in splits.items():
        prefix = f"{output}-{split}"
        preprocess(Options([str(file) for file in files], tokenizer, prefix, workers, format="text"))
        metas[prefix] = _describe(prefix, files, titles)
    return metas


def _read_titles(path: Path) -> dict[str, tuple[str, str]]:
    """(title, year) of each book by its number; none without the file."""
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({what_is_wrong(error)}); mend or remove it") from None
    if short := next((number for number, row in enumerate(rows, 1) if len(row) < 3), None):
        raise DataError(f"{path}: line {short} has fewer than three columns (number, title, year); mend or remove it")
    return {row[0]: (row[1], row[2]) for row in rows}


def _describe(prefix: str, files: list[Path], titles: dict[str, tuple[str, str]]) -> dict:
    """Add the words of each document to the dataset's meta data, and list the books beside it."""
    meta = read_meta(prefix)
    if WORDS in meta and Path(prefix + BOOKS).exists():
        return meta
    books = [(file.stem, words) for file in files if (words := _words(file)) is not None]
    dataset = IndexedDataset(prefix)
    if len(books) != dataset.documents:
        raise DataError(f"{prefix}: {dataset.documents} documents for {len(books)} books that are not empty: the tokenizer makes nothing "
                        "of some; take these away")
    tokens = np.diff(dataset.starts(np.arange(dataset.documents + 1))).tolist()
    listed = io.StringIO()
    writer = csv.writer(listed, lineterminator="\n")
    writer.writerow(["document", "book", "title", "year", "words", "tokens"])
    for number, (book, words) in enumerate(books):
        writer.writerow([number, book, *titles.get(book, ("", "")), words, tokens[number]])
    write_text(Path(prefix + BOOKS), listed.getvalue())
    meta[WORDS] = [words for _, words in books]
    write_text(pair_paths(prefix)[2], json.dumps(meta) + "\n")
    return meta


def _words(file: Path) -> int | None:
    """Words of a book, parted by white space; None of an empty file, which becomes no document."""
    text = file.read_text("utf-8-sig")
    return len(text.split()) if text else None
