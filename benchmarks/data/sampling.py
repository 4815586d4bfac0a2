"""Samples: preparing their order, reading them at random, and blending, beside megatron-core.

order: what must happen before the first sample of 10^7 documents can be read, in CPU seconds and in MB of memory.
samples: random samples a CPU-second from the page cache, alone and through a DataLoader (there a wall second).
blend: dealing 10^7 samples out over 8 datasets, in CPU seconds.

    python benchmarks/data/sampling.py order|samples|loader|blend [--rounds 5]
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import cpu_of, interleaved, report

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ngpt.data.batches import BatchSource
from megatron_ngpt.data.blend import Blend
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.tape import Tape, select_documents
from megatron_ngpt.data.writer import IndexedWriter

VOCABULARY = 32000
BATCH = 32
WEIGHTS = [0.31, 0.2, 0.15, 0.12, 0.09, 0.07, 0.05, 0.01]


def make_dataset(prefix: str, documents: int, mean: int) -> str:
    """Documents of random tokens, uint16, lengths from mean / 2 to 3 mean / 2."""
    generator = np.random.default_rng(0)
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        for start in range(0, documents, 10_000):
            lengths = generator.integers(mean // 2, 3 * mean // 2, min(10_000, documents - start)).astype(np.int32)
            writer.add(generator.integers(3, VOCABULARY, int(lengths.sum()), dtype=np.uint16), lengths)
        writer.finish(prefix, {})
    return prefix


def our_source(prefix: str, context: int) -> BatchSource:
    """Our batches over one dataset."""
    dataset = IndexedDataset(prefix)
    return BatchSource([Tape(select_documents([dataset], 0, dataset.documents))], [1.0], context, BATCH, 0, VOCABULARY)


def their_dataset(prefix: str, context: int):
    """megatron-core's GPTDataset over the same pair, one epoch, without the attention mask that nobody needs."""
    from megatron.core.datasets import gpt_dataset, indexed_dataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, pad, unique_identifiers = 2, 3, {"class": "none"}
        vocab_size = VOCABULARY
    dataset = indexed_dataset.IndexedDataset(prefix)
    config = gpt_dataset.GPTDatasetConfig(
        random_seed=0, sequence_length=context, tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False, split="1",
    )
    indices = np.arange(len(dataset), dtype=np.int32)
    samples = (int(dataset.sequence_lengths.sum(dtype=np.int64)) - 1) // context
    return gpt_dataset.GPTDataset(dataset, prefix, indices, samples, Split.train, config)


def prepare(kind: str, prefix: str, context: int) -> None:
    """In a process of its own: make the first sample readable, and print CPU seconds and how much peak memory grew, in MB."""
    if kind == "theirs":
        import megatron.core.datasets.gpt_dataset  # noqa: F401
    make = our_source if kind == "ours" else their_dataset
    before = peak_megabytes()
    seconds, _ = cpu_of(lambda: make(prefix, context))
    print(seconds, peak_megabytes() - before)


def peak_megabytes() -> float:
    """The most memory that this process ever held; Linux's ru_maxrss would begin with its parent's."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure_order(folder: str, rounds: int, output: str) -> None:
    """Time and memory, each kind in fresh processes."""
    prefix, memory = make_dataset(f"{folder}/order", 10_000_000, 20), {"ours": [], "megatron-core": []}

    def run(kind: str) -> float:
        command = [sys.executable, __file__, "prepare", "--kind", {"ours": "ours"}.get(kind, "theirs"), "--prefix", prefix]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, megabytes = map(float, out.splitlines()[-1].split())
        memory[kind].append(megabytes)
        return seconds
    figures = interleaved(rounds, {kind: (lambda kind=kind: run(kind)) for kind in memory})
    report("order of 10^7 documents, context 1,024: time", "CPU seconds", figures, "megatron-core", output)
    report("order of 10^7 documents, context 1,024: memory", "MB", memory, "megatron-core", output)


def rate(read: Callable[[], object], samples: int) -> float:
    """Samples a CPU-second of a call that reads so many."""
    return samples / cpu_of(read)[0]


def sample_readers(ours: BatchSource, theirs, steps: int = 100) -> dict[str, Callable[[], float]]:
    """What is compared: a whole sample and its tokens alone, theirs one by one as they are made to be read, ours in batches."""
    query, samples, numbers = theirs._query_document_sample_shuffle_indices, BATCH * steps, range(1, steps + 1)
    return {
        "megatron-core, a sample": lambda: rate(lambda: [theirs[i] for i in range(samples)], samples),
        "megatron-core, its tokens alone": lambda: rate(lambda: [query(i) for i in range(samples)], samples),
        "ours, with documents": lambda: rate(lambda: [ours.rows(step, 0, BATCH).documents for step in numbers], samples),
        "ours, tokens": lambda: rate(lambda: [ours.rows(step, 0, BATCH) for step in numbers], samples),
    }


def measure_samples(folder: str, rounds: int, output: str) -> None:
    """Random samples a CPU-second."""
    prefix = make_dataset(f"{folder}/samples", 100_000, 1000)
    for context in (1024, 4096):
        readers = sample_readers(our_source(prefix, context), their_dataset(prefix, context))
        for measure in readers.values():
            measure()                                       # everything comes from the page cache from here on
        title = f"random samples, context {context:,}"
        report(title, "samples a CPU-second", interleaved(rounds, readers), "megatron-core, a sample", output)


class Steps:
    """Our batches as a map-style dataset of steps, for a DataLoader."""

    def __init__(self, source: BatchSource, steps: int):
        self.source, self.steps = source, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:
        return self.source.rows(step + 1, 0, BATCH).tokens


def wall_rate(loader) -> float:
    """Samples a wall second of one pass, the start of workers included."""
    began, batches = time.perf_counter(), 0
    for _ in loader:
        batches += 1
    return BATCH * batches / (time.perf_counter() - began)


def loaders(ours: Steps, theirs, workers: int) -> dict[str, Callable[[], float]]:
    """Both datasets through torch's DataLoader."""
    from torch.utils.data import DataLoader

    return {
        f"megatron-core, {workers} workers": lambda: wall_rate(DataLoader(theirs, batch_size=BATCH, num_workers=workers)),
        f"ours, {workers} workers": lambda: wall_rate(DataLoader(ours, batch_size=None, num_workers=workers)),
    }


def measure_loader(folder: str, rounds: int, output: str, steps: int = 1000) -> None:
    """Samples a wall second through a DataLoader, in this process and with 2 workers."""
    from torch.utils.data import Subset

    prefix = make_dataset(f"{folder}/loader", 100_000, 1000)
    for context in (1024, 4096):
        theirs = their_dataset(prefix, context)
        chosen = Subset(theirs, [i % len(theirs) for i in range(BATCH * steps)])
        ours = Steps(our_source(prefix, context), steps)
        candidates = loaders(ours, chosen, 0) | loaders(ours, chosen, 2)
        title = f"through a DataLoader, context {context:,}"
        report(title, "samples a second", interleaved(rounds, candidates), "megatron-core, 2 workers", output)


def measure_blend(_: str, rounds: int, output: str) -> None:
    """Dealing out 10^7 samples over 8 datasets; the largest distance from the weights is printed."""
    from megatron.core.datasets import helpers

    size, found = 10_000_000, {}

    def theirs() -> None:
        dataset, sample = np.zeros(size, np.int16), np.zeros(size, np.int64)
        helpers.build_blending_indices(dataset, sample, np.array(WEIGHTS), len(WEIGHTS), size, False)
        found["megatron-core"] = dataset

    def ours() -> None:
        found["ours"] = Blend(WEIGHTS)
    figures = interleaved(rounds, {"megatron-core": lambda: cpu_of(theirs)[0], "ours": lambda: cpu_of(ours)[0]})
    report("blending 8 datasets, 10^7 samples", "CPU seconds", figures, "megatron-core", output)
    looked_up = np.arange(size)
    seconds, _ = cpu_of(lambda: [found["ours"].locate(part) for part in np.split(looked_up, 1000)])
    print(f"ours, a look-up: {seconds / size * 1e9:.1f} ns a sample")
    shares = np.array(found["ours"].counts) / 65536
    for name, dealt, wanted in (("megatron-core", found["megatron-core"][:1_000_000], np.array(WEIGHTS)),
                                ("ours", found["ours"].locate(looked_up[:1_000_000])[0], shares)):
        steps = np.arange(1, len(dealt) + 1)
        off = max(np.abs(np.cumsum(dealt == i) - steps * share).max() for i, share in enumerate(wanted))
        print(f"{name}: at most {off:.4f} samples from the weights in the first {len(dealt):,}")


def main() -> None:
    """Run one measurement in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = {"order": measure_order, "samples": measure_samples, "loader": measure_loader, "blend": measure_blend}
    parser.add_argument("what", choices=[*measures, "prepare"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="sampling.jsonl", help="JSON lines file the result is added to")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.kind, options.prefix, 1024)
        return
    with tempfile.TemporaryDirectory() as folder:
        measures[options.what](folder, options.rounds, options.output)


if __name__ == "__main__":
    main()
