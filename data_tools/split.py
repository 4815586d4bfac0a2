"""`split`: one dataset to several, by document: at random to train, valid and test, or by the documents' lengths."""

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from data_tools.merge import TOKENIZER_KEYS, document_blocks, take_documents
from megatron_ngpt.data.indexed import IndexedDataset, pair_paths, read_meta
from megatron_ngpt.data.order import Permutation
from megatron_ngpt.data.writer import IndexedWriter
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.monitor.progress import byte_progress

PARTS = ("train", "valid", "test")
PartOf = Callable[[np.ndarray, np.ndarray], np.ndarray]  # documents' numbers and lengths to their parts' numbers, [documents] each


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


def length_ranges(lengths: list[int]) -> list[str]:
    """The names of the parts between the lengths: of 1024 and 4096, `0-1024`, `1024-4096` and `4096-up`; the upper end is left out."""
    return [f"{low}-{high}" for low, high in zip([0, *lengths], [*lengths, "up"], strict=True)]


def split(prefix: str, output: str, valid: float, test: float, seed: int) -> dict[str, dict]:
    """Write `OUTPUT-train`, `OUTPUT-valid`, `OUTPUT-test` for those with a share, in order; return their metas."""
    dataset = IndexedDataset(prefix)
    sizes = part_sizes(dataset.documents, valid, test)
    return _write_parts(dataset, output, list(sizes), lambda numbers, _: part_of(numbers, dataset.documents, sizes, seed))


def split_by_length(prefix: str, output: str, lengths: list[int]) -> dict[str, dict]:
    """Write `OUTPUT-LOW-HIGH` for each range of lengths in tokens (`length_ranges`), in order; return the metas.

    A range without documents is not written, and has no meta.
    """
    edges = np.array(lengths)
    return _write_parts(IndexedDataset(prefix), output, length_ranges(lengths), lambda _, own: np.searchsorted(edges, own, side="right"))


def _write_parts(dataset: IndexedDataset, output: str, parts: list[str], choose: PartOf) -> dict[str, dict]:
    """The parts that have documents, as datasets, and their metas. Raises ConfigError if one of the names is taken."""
    for part in parts:
        if pair_paths(f"{output}-{part}")[1].exists():
            raise ConfigError(f"--output {output}: {output}-{part}.idx exists; choose another prefix, or remove it first")
    meta = read_meta(dataset.prefix) or {}
    meta = {key: meta[key] for key in TOKENIZER_KEYS if key in meta}
    with ExitStack() as opened:
        writers = {part: IndexedWriter(f"{output}-{part}.splitting", dataset.dtype) for part in parts}
        for writer in writers.values():
            opened.callback(writer.discard)
        _deal_out(dataset, list(writers.values()), choose)
        return {part: writer.finish(f"{output}-{part}", meta) for part, writer in writers.items() if writer.documents}


def _deal_out(dataset: IndexedDataset, writers: list[IndexedWriter], choose: PartOf) -> None:
    with byte_progress() as bar:
        task = bar.add_task("split", total=dataset.tape.nbytes)
        for first, tokens, lengths in document_blocks(dataset):
            parts = choose(np.arange(first, first + len(lengths)), lengths)
            for number, writer in enumerate(writers):
                chosen = np.flatnonzero(parts == number)
                if len(chosen):
                    writer.add(take_documents(tokens, lengths, chosen), lengths[chosen])
            bar.update(task, advance=tokens.nbytes)
