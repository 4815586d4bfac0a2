"""`split`: one dataset to train, valid and test datasets, by document."""

from contextlib import ExitStack

import numpy as np

from data_tools.merge import TOKENIZER_KEYS, document_blocks, take_documents
from megatron_ngpt.data.indexed import IndexedDataset, pair_paths, read_meta
from megatron_ngpt.data.order import Permutation
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.progress import byte_progress

PARTS = ("train", "valid", "test")


def part_sizes(documents: int, valid: float, test: float) -> dict[str, int]:
    """How many documents each part gets: a share above 0 gets at least one. Raises ConfigError if there are too few."""
    for option, share in (("--valid", valid), ("--test", test)):
        if not 0 <= share < 1:
            raise ConfigError(f"{option} {share}: give a share of the documents, from 0 to below 1")
    if not 0 < valid + test < 1:
        raise ConfigError(f"--valid {valid} --test {test}: their sum must be above 0 and, for something to train on, below 1")
    sizes = {part: max(1, round(share * documents)) if share else 0 for part, share in (("valid", valid), ("test", test))}
    sizes["train"] = documents - sum(sizes.values())
    if sizes["train"] < 1:
        raise ConfigError(f"--valid {valid} --test {test}: {documents} documents are too few for that; "
                          f"{sum(sizes.values()) + 1} are the least")
    return {part: sizes[part] for part in PARTS if sizes[part]}


def part_of(numbers: np.ndarray, documents: int, sizes: dict[str, int], seed: int) -> np.ndarray:
    """Which part each of these documents belongs to (its place in `sizes`), int64: a keyed permutation, cut by the sizes."""
    edges = np.cumsum(list(sizes.values()))
    return np.searchsorted(edges, Permutation(documents, "split", seed)(numbers), side="right")


def split(prefix: str, output: str, valid: float, test: float, seed: int) -> dict[str, dict]:
    """Write `OUTPUT-train`, `OUTPUT-valid`, `OUTPUT-test` for those with a share, in order; return their metas."""
    dataset = IndexedDataset(prefix)
    sizes = part_sizes(dataset.documents, valid, test)
    for part in sizes:
        if pair_paths(f"{output}-{part}")[1].exists():
            raise ConfigError(f"--output {output}: {output}-{part}.idx exists; choose another prefix, or remove it first")
    meta = read_meta(prefix) or {}
    meta = {key: meta[key] for key in TOKENIZER_KEYS if key in meta}
    with ExitStack() as opened:
        writers = [IndexedWriter(f"{output}-{part}.splitting", dataset.dtype) for part in sizes]
        for writer in writers:
            opened.callback(writer.discard)
        _deal_out(dataset, writers, sizes, seed)
        return {part: writer.finish(f"{output}-{part}", meta) for part, writer in zip(sizes, writers, strict=True)}


def _deal_out(dataset: IndexedDataset, writers: list[IndexedWriter], sizes: dict[str, int], seed: int) -> None:
    with byte_progress() as bar:
        task = bar.add_task("split", total=dataset.tape.nbytes)
        for first, tokens, lengths in document_blocks(dataset):
            parts = part_of(np.arange(first, first + len(lengths)), dataset.documents, sizes, seed)
            for number, writer in enumerate(writers):
                chosen = np.flatnonzero(parts == number)
                if len(chosen):
                    writer.add(take_documents(tokens, lengths, chosen), lengths[chosen])
            bar.update(task, advance=tokens.nbytes)
