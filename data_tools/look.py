"""`inspect`: what is in a dataset, as numbers, a histogram, and text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_tools.blocks import BLOCK, token_blocks
from megatron_ngpt.data.indexed import IndexedDataset, read_meta
from megatron_ngpt.data.order import Permutation
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import ConfigError

BAR_WIDTH = 40
SHOWN_CHARACTERS = 400
SHOWN_BYTES = 10


@dataclass
class Contents:
    """What a dataset holds. `bins`: documents by length, bin i those of [2^i, 2^(i+1)) tokens (bin 0 also the empty ones)."""

    prefix: str
    documents: int
    tokens: int
    dtype: str
    shortest: int
    longest: int
    bins: np.ndarray
    bytes_shares: list[tuple[str, float]]       # byte-fallback entry and its share of all tokens, largest first


def survey(prefix: str, tokenizer: Tokenizer | None) -> Contents:
    """Count a dataset's lengths, and with a tokenizer its byte-fallback tokens, which takes one pass over all tokens."""
    dataset = IndexedDataset(prefix)
    bins, shortest, longest = np.zeros(64, np.int64), dataset.tokens, 0
    for first in range(0, dataset.documents, BLOCK):
        lengths = np.diff(dataset.starts(np.arange(first, min(first + BLOCK, dataset.documents) + 1)))
        bins += np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64), minlength=64)
        shortest, longest = min(shortest, int(lengths.min())), max(longest, int(lengths.max()))
    shares = _byte_shares(dataset, tokenizer) if tokenizer else []
    bins = bins[: int(np.flatnonzero(bins).max(initial=0)) + 1]
    return Contents(prefix, dataset.documents, dataset.tokens, dataset.dtype.name, shortest, longest, bins, shares)


def _byte_shares(dataset: IndexedDataset, tokenizer: Tokenizer) -> list[tuple[str, float]]:
    counts = np.zeros(tokenizer.size, np.int64)
    for _, block in token_blocks(dataset):
        known = block[(block >= 0) & (block < tokenizer.size)]
        counts += np.bincount(known, minlength=tokenizer.size)
    ids = tokenizer.byte_tokens()
    ids = ids[np.argsort(-counts[ids], kind="stable")]
    return [(tokenizer.piece(token), counts[token] / dataset.tokens) for token in ids if counts[token]]


def print_contents(contents: Contents) -> None:
    """Write the counts, the histogram of lengths and the byte-fallback tokens to the terminal."""
    console = Console()
    mean = contents.tokens / max(1, contents.documents)
    counts = f"{contents.documents:,} documents, {contents.tokens:,} tokens ({contents.dtype})"
    console.print(f"{contents.prefix}: {counts}", soft_wrap=True)
    console.print(f"tokens a document: mean {mean:,.1f}, shortest {contents.shortest:,}, longest {contents.longest:,}")
    table = Table("tokens a document", "documents", "")
    for power, count in enumerate(contents.bins.tolist()):
        bar = "█" * -(-BAR_WIDTH * count // max(1, int(contents.bins.max())))
        table.add_row(f"{2**power:,} to {2 ** (power + 1) - 1:,}", f"{count:,}", bar)
    console.print(table)
    if contents.bytes_shares:
        total = sum(share for _, share in contents.bytes_shares)
        console.print(f"byte-fallback tokens: {total:.4%} of all", highlight=False)
        shown = contents.bytes_shares[:SHOWN_BYTES]
        listed = "  ".join(f"{piece} {share:.4%}" for piece, share in shown)
        if len(contents.bytes_shares) > SHOWN_BYTES:
            listed = f"the {SHOWN_BYTES} most frequent of {len(contents.bytes_shares)}: {listed}"
        console.print(listed, highlight=False, markup=False)


def print_samples(prefix: str, tokenizer: Tokenizer, count: int, seed: int) -> None:
    """Decode the beginnings of some documents, drawn by seed."""
    dataset = IndexedDataset(prefix)
    if not dataset.documents:
        return
    drawn = Permutation(dataset.documents, "inspect", seed)(np.arange(min(count, dataset.documents)))
    for number in drawn.tolist():
        tokens = dataset.document(number)
        ended = len(tokens) > 0 and tokens[-1] == tokenizer.eos_id
        text = tokenizer.decode(tokens[: SHOWN_CHARACTERS * 4][: -1 if ended and len(tokens) <= SHOWN_CHARACTERS * 4 else None])
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
        print(f"\ndocument {number}, {len(tokens)} tokens{'' if ended else ', not closed by the end-of-document id'}:\n{shown}")


def save_histogram(contents: Contents, path: str) -> None:
    """Draw the histogram of lengths as a PNG. Raises ConfigError if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"--png {path}: needs matplotlib; pip install matplotlib") from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(contents.bins)) + 0.5, contents.bins, width=0.95, color="tab:blue")
    axes.set_xticks(range(len(contents.bins) + 1), [f"{2**power:,}" for power in range(len(contents.bins) + 1)], rotation=45)
    axes.set(xlabel="tokens a document", ylabel="documents", title=f"{Path(contents.prefix).name}: {contents.tokens:,} tokens")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150)


def stated_tokenizer(prefix: str, path: str | None) -> Tokenizer | None:
    """The tokenizer at `path`, or None without one. Raises ConfigError if the dataset was made by another."""
    if path is None:
        return None
    tokenizer = Tokenizer(path)
    made_by = (read_meta(prefix) or {}).get("tokenizer_sha256", tokenizer.sha256)
    if made_by != tokenizer.sha256:
        raise ConfigError(f"--tokenizer {path}: {prefix} was made by another tokenizer (sha256 {made_by[:12]}…)")
    return tokenizer
