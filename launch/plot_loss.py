#!/usr/bin/env python3
"""Draw the training and validation loss of runs: python launch/plot_loss.py RUN_DIRECTORY ... --output FILE.png (needs matplotlib)."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from megatron_ngpt.monitor.metrics import read_metrics


def curve(run: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key of a run's metrics.jsonl."""
    lines = read_metrics(run, key)
    return [line["step"] for line in lines], [line[key] for line in lines]


def main() -> None:
    """Draw and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIRECTORY")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for run in options.runs:
        (line,) = axes.plot(*curve(run, "loss"), linewidth=0.8, alpha=0.6, label=f"{run.name}: training")
        axes.plot(*curve(run, "valid_loss"), "o-", color=line.get_color(), markersize=5, label=f"{run.name}: validation")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
