"""`merge`: several datasets to one, in order or shuffled by documents, in memory that does not grow with them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_tools.arguments import named_twice
from megatron_ngpt.data.indexed import IndexedDataset, pair_paths, read_meta
from megatron_ngpt.data.order import Permutation, derived_numbers
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.progress import byte_progress

BLOCK_TOKENS = 1 << 22
BUCKET_BYTES = 1 << 27
TOKENIZER_KEYS = ("tokenizer_sha256", "vocab_size")
COUNT_KEYS = ("text_bytes", "empty_documents", "malformed_lines")


def document_blocks(dataset: IndexedDataset, most: int = BLOCK_TOKENS) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first document, tokens, lengths) for runs of whole documents of about `most` tokens, in order."""
    first = 0
    while first < dataset.documents:
        begin = int(dataset.starts(np.array([first]))[0])
        last = max(first, int(dataset.document_at(np.array([min(begin + most, dataset.tokens) - 1]))[0])) + 1
        last = min(max(last, first + 1), first + most)
        starts = dataset.starts(np.arange(first, last + 1))
        yield first, dataset.tape[starts[0] : starts[-1]], np.diff(starts).astype(np.int32)
        first = last


def merge(
    prefixes: list[str], output: str, shuffle_seed: int | None = None, scratch: str | None = None, keep_meta: bool = False
) -> dict:
    """Write the documents of all datasets, in the order given or shuffled by seed, as the dataset `output`; return its meta.

    `scratch`: beginning of the temporary files' names, `OUTPUT.merging` if not given. `keep_meta`: the meta data of a single
    dataset go over whole. Raises ConfigError and DataError for datasets that do not fit together.
    """
    scratch = scratch or f"{output}.merging"
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    if twice := named_twice([f"{prefix}.bin" for prefix in prefixes]):
        raise ConfigError(*twice)
    if pair_paths(output)[1].exists():
        raise ConfigError(f"--output {output}: {output}.idx exists; choose another prefix, or remove the dataset first")
    meta = merged_meta(prefixes, keep_meta)
    dtype = np.result_type(*(dataset.dtype for dataset in datasets))
    writer = IndexedWriter(scratch, dtype)
    try:
        with byte_progress() as bar:
            task = bar.add_task("merge", total=sum(dataset.tokens for dataset in datasets) * dtype.itemsize)
            buckets = Path(f"{scratch}.buckets")
            blocks = _in_order(datasets) if shuffle_seed is None else _shuffled(datasets, shuffle_seed, buckets, dtype)
            for tokens, lengths in blocks:
                writer.add(tokens, lengths)
                bar.update(task, completed=writer.bytes)
        return writer.finish(output, meta)
    finally:
        writer.discard()


def merged_meta(prefixes: list[str], keep: bool) -> dict:
    """What the merged dataset says of its tokenizer and its input. Raises ConfigError if tokenizers differ."""
    metas = [read_meta(prefix) or {} for prefix in prefixes]
    if keep:
        return metas[0]
    pairs = zip(prefixes, metas, strict=True)
    stated = {prefix: meta["tokenizer_sha256"] for prefix, meta in pairs if "tokenizer_sha256" in meta}
    if len(set(stated.values())) > 1:
        listed = ", ".join(f"{prefix} {sha[:12]}…" for prefix, sha in stated.items())
        raise ConfigError(f"--input: made by different tokenizers: {listed}; preprocess all texts with one tokenizer")
    whole = {key: metas[0][key] for key in TOKENIZER_KEYS if all(key in meta for meta in metas)}
    return whole | {key: sum(meta[key] for meta in metas) for key in COUNT_KEYS if all(key in meta for meta in metas)}


def _in_order(datasets: list[IndexedDataset]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for dataset in datasets:
        for _, tokens, lengths in document_blocks(dataset):
            yield tokens, lengths


def _shuffled(
    datasets: list[IndexedDataset], seed: int, folder: Path, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each document goes to a random one of some buckets on disk, and each bucket is then shuffled in memory.

    That is a uniform shuffle of all documents; it reads and writes every token twice, in long runs.
    """
    total = sum(dataset.tokens for dataset in datasets) * dtype.itemsize
    buckets = -(-total // BUCKET_BYTES) or 1
    shutil.rmtree(folder, ignore_errors=True)       # of a run that was killed
    folder.mkdir()
    try:
        number = 0
        for tokens, lengths in _in_order(datasets):
            _scatter(tokens.astype(dtype), lengths, folder, _bucket_of(number, len(lengths), seed, buckets))
            number += len(lengths)
        for bucket in range(buckets):
            if os.path.exists(folder / f"{bucket}.lengths"):
                yield _gather(folder, bucket, seed, dtype)
    finally:
        shutil.rmtree(folder)


def _bucket_of(first: int, count: int, seed: int, buckets: int) -> np.ndarray:
    """A random bucket for each of `count` documents from number `first` on."""
    spread = Permutation(1 << 62, "bucket", seed)
    return spread(np.arange(first, first + count)) % buckets


def _scatter(tokens: np.ndarray, lengths: np.ndarray, folder: Path, buckets: np.ndarray) -> None:
    order = np.argsort(buckets, kind="stable")
    moved, moved_lengths = take_documents(tokens, lengths, order), lengths[order]
    edges = np.searchsorted(buckets[order], np.arange(buckets.max() + 2))
    ends = np.concatenate([[0], np.cumsum(moved_lengths, dtype=np.int64)])
    for bucket in np.unique(buckets).tolist():
        low, high = edges[bucket], edges[bucket + 1]
        for name, values in (("tokens", moved[ends[low] : ends[high]]), ("lengths", moved_lengths[low:high])):
            with open(folder / f"{bucket}.{name}", "ab") as file:
                file.write(values.tobytes())


def _gather(folder: Path, bucket: int, seed: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.fromfile(folder / f"{bucket}.tokens", dtype)
    lengths = np.fromfile(folder / f"{bucket}.lengths", np.int32)
    order = np.random.Generator(np.random.PCG64(derived_numbers("bucket", seed, bucket).tolist())).permutation(len(lengths))
    return take_documents(tokens, lengths, order), lengths[order]


def take_documents(tokens: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The tokens of the documents `order` (their numbers), end to end."""
    ends = np.cumsum(lengths, dtype=np.int64)
    pieces = [tokens[ends[number] - lengths[number] : ends[number]] for number in order.tolist()]
    return np.concatenate(pieces) if pieces else tokens[:0]
