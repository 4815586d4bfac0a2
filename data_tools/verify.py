"""`verify`: whether a dataset is intact, and fits a tokenizer."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.blocks import BLOCK, token_blocks
from megatron_ngpt.data.indexed import IndexedDataset, pair_paths, read_meta
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import DataError
from megatron_ngpt.monitor.progress import byte_progress

CHECKSUMS = (("bin_sha256", 0), ("idx_sha256", 1))


def verify(prefix: str, tokenizer: Tokenizer | None = None) -> tuple[list[str], str]:
    """(a line for each problem of a dataset, a line on what was checked). Reads everything once, in blocks.

    Without a tokenizer tokens are compared with the vocabulary size that `PREFIX.meta.json` states, if there is one.
    """
    try:
        dataset, meta = IndexedDataset(prefix), read_meta(prefix)
    except DataError as error:
        return error.problems, ""
    problems = list(index_problems(dataset)) + list(meta_problems(dataset, meta or {}, tokenizer))
    vocabulary = tokenizer.size if tokenizer else (meta or {}).get("vocab_size")
    if vocabulary is not None:
        problems += token_problems(dataset, vocabulary)
    problems += checksum_problems(prefix, meta or {})
    checked = ["structure", "offsets", "documents"]
    checked += [f"tokens below {vocabulary}"] if vocabulary is not None else []
    checked += ["checksums"] if meta and any(key in meta for key, _ in CHECKSUMS) else []
    left_out = "" if meta else "; no checksum to compare: there is no .meta.json"
    counts = f"{dataset.documents:,} documents, {dataset.tokens:,} tokens"
    return problems, f"{prefix}: {counts}: {', '.join(checked)} are right{left_out}"


def index_problems(dataset: IndexedDataset) -> Iterator[str]:
    """What is inconsistent in the index: lengths, offsets, document boundaries; the first of each."""
    lengths, offsets, indices = dataset.index()
    expected = 0
    for start in range(0, dataset.sequences, BLOCK):
        block = lengths[start : start + BLOCK].astype(np.int64) * dataset.dtype.itemsize
        begins = expected + np.cumsum(block) - block
        if (bad := np.flatnonzero(block < 0)).size:
            yield f"{dataset.idx_path}: sequence {start + bad[0]} has the length {lengths[start + bad[0]]}"
            return
        if (bad := np.flatnonzero(offsets[start : start + BLOCK] != begins)).size:
            number = start + int(bad[0])
            yield (f"{dataset.idx_path}: sequence {number} is said to begin at byte {offsets[number]}, "
                   f"but the lengths before it end at {begins[bad[0]]}")
            return
        expected = int(begins[-1] + block[-1])
    for start in range(0, len(indices) - 1, BLOCK):
        if (bad := np.flatnonzero(np.diff(indices[start : start + BLOCK + 1]) < 0)).size:
            yield f"{dataset.idx_path}: document {start + bad[0]} ends before it begins"
            return


def meta_problems(dataset: IndexedDataset, meta: dict, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Where the description and the pair, or the tokenizer, disagree."""
    path = pair_paths(dataset.prefix)[2]
    for key, found in (("documents", dataset.documents), ("tokens", dataset.tokens)):
        if meta.get(key, found) != found:
            yield f"{dataset.idx_path}: {found} {key}, but {path} says {meta[key]}"
    if tokenizer and meta.get("tokenizer_sha256", tokenizer.sha256) != tokenizer.sha256:
        yield f"{path}: made by tokenizer {meta['tokenizer_sha256'][:12]}…, but {tokenizer.path} is {tokenizer.sha256[:12]}…"


def token_problems(dataset: IndexedDataset, vocabulary: int) -> list[str]:
    """The first token outside the vocabulary, and how many there are."""
    first, count = None, 0
    for start, block in token_blocks(dataset):
        if block.max() < vocabulary and block.min() >= 0:
            continue
        bad = np.flatnonzero((block >= vocabulary) | (block < 0))
        first = start + int(bad[0]) if first is None else first
        count += len(bad)
    if first is None:
        return []
    document = dataset.document_at(np.array([first]))
    offset = first - int(dataset.starts(document)[0])
    return [f"{dataset.bin_path}: token {dataset.tape[first]} at offset {offset} of document {document[0]} is outside the "
            f"vocabulary of {vocabulary} ({count} such tokens in all)"]


def checksum_problems(prefix: str, meta: dict) -> list[str]:
    """The files whose bytes are not those that were written."""
    problems = []
    for key, place in CHECKSUMS:
        path = pair_paths(prefix)[place]
        if key in meta and (found := _sha256(path)) != meta[key]:
            problems.append(f"{path}: its bytes changed since it was written: sha256 {found[:12]}…, not {str(meta[key])[:12]}…")
    return problems


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with byte_progress() as bar, open(path, "rb") as file:
        task = bar.add_task("checksum", total=path.stat().st_size)
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(task, advance=len(block))
    return digest.hexdigest()
