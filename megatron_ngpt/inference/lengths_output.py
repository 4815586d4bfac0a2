"""What `ngpt evaluate --lengths --out DIR` writes: results as JSON and CSV, the loss by position as CSV, and both as pictures."""

import csv
import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_ngpt.checkpoint.files import write_bytes, write_text
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.lengths import LengthResult

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise ConfigError("--out: matplotlib is not installed, which draws the figures; pip install -e '.[study]'") from None

BINS_AN_OCTAVE = 6  # of positions
FILES = ("lengths.json", "lengths.csv", "positions.csv", "perplexity.png", "positions.png")


def check_output(out: Path) -> None:
    """Make the directory. Raises ConfigError, before any work is done, if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (out / name).open("ab"):
                pass
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.filename or out} cannot be written: {error.strerror}; choose another directory") from None


def write_output(out: Path, results: Sequence[LengthResult]) -> None:
    """Write `FILES`."""
    shown = [result.shown() for result in results]
    write_text(out / "lengths.json", json.dumps(shown, indent=2) + "\n")
    write_text(out / "lengths.csv", _table(list(shown[0]), [list(line.values()) for line in shown]))
    rows = [[*_name(result), result.context, *row] for result in results for row in by_position(result)]
    write_text(out / "positions.csv", _table(["model", "rope_scaling", "context", "first", "last", "loss", "tokens"], rows))
    write_bytes(out / "perplexity.png", _drawn(draw_perplexity, results))
    write_bytes(out / "positions.png", _drawn(draw_positions, results))


def by_position(result: LengthResult) -> list[tuple[int, int, float, int]]:
    """(first position, last one, loss in nats a token, tokens) for runs of positions, counted from 0, that widen with the position.

    Where windows overlap, the first positions have the tokens of each document's first window alone.
    """
    octaves = np.arange(0, np.log2(result.context) + 1 / BINS_AN_OCTAVE, 1 / BINS_AN_OCTAVE)
    edges = np.unique(np.clip(np.round(2**octaves).astype(int), 1, result.context)) - 1
    edges = [*edges[edges < result.context].tolist(), result.context]
    found = []
    for first, after in pairwise(edges):
        tokens = int(result.counts[first:after].sum())
        if tokens:
            found.append((first, after - 1, float(result.sums[first:after].sum()) / tokens, tokens))
    return found


def draw_perplexity(axes, results: Sequence[LengthResult]) -> None:
    """Perplexity over length, a line for each model and scaling."""
    for name, lines in _grouped(results).items():
        axes.plot([line.context for line in lines], [line.perplexity for line in lines], "o-", markersize=4, label=_label(name, results))
    lengths = sorted({result.context for result in results})
    axes.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="perplexity a token")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45 if len(lengths) > 6 else 0)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for tick in _nice(low, high) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def draw_positions(axes, results: Sequence[LengthResult]) -> None:
    """The loss by position at the longest length, a line for each model and scaling."""
    longest = max(result.context for result in results)
    for name, lines in _grouped(results).items():
        rows = by_position(lines[-1])
        axes.plot([np.sqrt((first + 1) * (last + 1)) for first, last, *_ in rows], [row[2] for row in rows], label=_label(name, results))
    axes.set(xscale="log", xlabel=f"position in a window of {longest:,} tokens", ylabel="loss, nats a token")


def _nice(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5, 10, ..., and finer ones where these are few."""
    powers = [10.0**power for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(np.arange(1, 10, 0.2).round(1).tolist())):
        ticks = [power * step for power in powers for step in steps]
        if sum(low <= tick <= high for tick in ticks) >= 3:
            break
    return ticks


def _drawn(draw, results: Sequence[LengthResult]) -> bytes:
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    draw(axes, results)
    for context in sorted({result.trained_context for result in results}):
        axes.axvline(context, color="grey", linestyle=":", linewidth=1)
        axes.annotate(" trained context", (context, 1), xycoords=("data", "axes fraction"), va="top", color="grey", fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    return png.getvalue()


def _grouped(results: Sequence[LengthResult]) -> dict[tuple[str, str], list[LengthResult]]:
    """By model and scaling, in order of the lengths."""
    groups: dict[tuple[str, str], list[LengthResult]] = {}
    for result in results:
        groups.setdefault(_name(result), []).append(result)
    return groups


def _name(result: LengthResult) -> tuple[str, str]:
    return result.model, result.rope_scaling


def _label(name: tuple[str, str], results: Sequence[LengthResult]) -> str:
    """A name as far as it tells one line from the others."""
    model, scaling = name
    positions = "positions as trained" if scaling == "trained" else f"rope scaling {scaling}"
    several = len({result.model for result in results}) > 1
    return f"{model}, {positions}" if several else positions


def _table(head: list[str], rows: list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *rows])
    return text.getvalue()
