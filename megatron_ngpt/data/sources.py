"""From a recipe's dataset entries to tapes: globs found, pairs opened, splits applied, every problem told."""

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.config.recipe import Dataset
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.data.tape import Tape, find_prefixes, select_documents
from megatron_ngpt.errors import DataError

PEEKED_TOKENS = 1 << 20


@dataclass(frozen=True)
class Source:
    """One entry of `data.train` or `data.valid`: its recipe key, what it says, and its tokens."""

    key: str
    entry: Dataset
    tape: Tape


def open_source(kind: str, number: int, entry: Dataset, context: int) -> Source:
    """Open the datasets of entry `number` of `kind` (train or valid). Raises DataError naming the key for whatever is wrong."""
    key = f"data.{kind}.{number}"
    try:
        datasets = [IndexedDataset(prefix) for prefix in find_prefixes(entry.prefix)]
    except DataError as error:
        raise DataError(*(f"{key}.prefix: {problem}" for problem in error.problems)) from None
    documents = sum(dataset.documents for dataset in datasets)
    first, last = split_documents(documents, entry.split, kind)
    if first == last:
        if entry.split is None:
            raise DataError(f"{key}.prefix: {entry.prefix}: holds no documents")
        raise DataError(f"{key}.split: {entry.split} leaves no documents of {documents} in {entry.prefix} for {kind}; "
                        "a split needs at least 2 documents")
    tape = Tape(select_documents(datasets, first, last))
    if tape.tokens < context + 1:
        raise DataError(f"{key}.prefix: {entry.prefix}: {tape.tokens} tokens in {tape.documents} documents, too few for one "
                        f"sample of model.context + 1 = {context + 1}; give more text or a smaller model.context")
    return Source(key, entry, tape)


def split_documents(documents: int, split: float | None, kind: str) -> tuple[int, int]:
    """The documents [first, last) that `split` leaves for `kind`: the first share for train, the rest for valid.

    Of two or more documents at least one is left on either side.
    """
    if split is None:
        return 0, documents
    cut = min(max(round(split * documents), 1), documents - 1) if documents > 1 else documents
    return (0, cut) if kind == "train" else (cut, documents)


def open_sources(kind: str, entries: list[Dataset], context: int) -> tuple[list[Source], list[str]]:
    """All entries that could be opened, and a line for each problem of the others."""
    sources, problems = [], []
    for number, entry in enumerate(entries):
        try:
            sources.append(open_source(kind, number, entry, context))
        except DataError as error:
            problems += error.problems
    return sources, problems


def overlaps(train: list[Source], valid: list[Source]) -> list[str]:
    """A line for each validation entry that has documents in common with a training entry."""
    problems = []
    for held_out in valid:
        for trained in train:
            shared = [
                b.dataset.prefix for a in trained.tape.shards for b in held_out.tape.shards
                if a.dataset.bin_path.samefile(b.dataset.bin_path) and max(a.first, b.first) < min(a.last, b.last)
            ]
            if shared:
                problems.append(f"{held_out.key}.split: {_shown(held_out)}: shares documents of {shared[0]} with "
                                f"{trained.key} (split {_shown(trained)}); give both the same split, or different datasets")
    return problems


def _shown(source: Source) -> str:
    return "null" if source.entry.split is None else str(source.entry.split)


def misfits(source: Source, tokenizer_sha256: str | None, vocabulary: int | None) -> list[str]:
    """What of a source's datasets does not fit the tokenizer or the number of vocabulary entries, a line each.

    With `PREFIX.meta.json` the tokenizer and its size are compared; without, the first million tokens are looked at.
    """
    problems = []
    for shard in source.tape.shards:
        prefix = shard.dataset.prefix
        try:
            meta = read_meta(prefix) or {}
        except DataError as error:
            problems += [f"{source.key}.prefix: {problem}" for problem in error.problems]
            continue
        if tokenizer_sha256 and meta.get("tokenizer_sha256") not in (None, tokenizer_sha256):
            problems.append(f"data.tokenizer: sha256 {tokenizer_sha256[:12]}… is not the tokenizer that made "
                            f"{source.key}.prefix {prefix} ({str(meta['tokenizer_sha256'])[:12]}…); use that one, or "
                            "preprocess again")
        elif vocabulary is not None:
            peeked = shard.dataset.tape[:PEEKED_TOKENS]
            stated = meta.get("vocab_size")
            largest = stated - 1 if isinstance(stated, int) else int(np.max(peeked, initial=0))
            if largest >= vocabulary:
                problems.append(f"model.vocab: {vocabulary} entries are too few for {source.key}.prefix {prefix}, whose ids "
                                f"reach {largest}; use {largest + 1} or more, or preprocess with this tokenizer")
    return problems
