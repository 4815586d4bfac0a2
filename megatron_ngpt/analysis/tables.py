"""The numbers of an analysis as CSV: what every figure was drawn from."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megatron_ngpt.analysis.analyze import Result


def write_tables(directory: Path, results: list[Result], counts: np.ndarray | None, tolerance: float) -> None:
    """`matrices.csv`, `singular_values.csv`, `embeddings.csv`, `jacobians.csv`, and for nGPT `alpha.csv`, `s_qk.csv`, `s_z.csv`."""
    spectra = [(r.label, s) for r in results for s in r.spectra]
    _write(directory / "matrices.csv", "model matrix layer head largest smallest condition rank size", (
        (label, s.matrix, s.layer, _head(s.head), s.values[0], s.values[-1], s.condition, s.rank(tolerance), len(s.values))
        for label, s in spectra))
    _write(directory / "singular_values.csv", "model matrix layer head place value", (
        (label, s.matrix, s.layer, _head(s.head), place, value) for label, s in spectra for place, value in enumerate(s.values)))
    _write(directory / "embeddings.csv", "model end quantity place value", (
        (r.label, e.end, quantity, place, value) for r in results for e in r.embeddings
        for quantity, values in {"norm": e.norms, "eigenvalue": e.eigenvalues, "cosine_percentile": _percentiles(e.cosines)}.items()
        for place, value in enumerate(values)))
    _write(directory / "jacobians.csv", "model block largest_at_least smallest_at_most condition_at_least steps exact", (
        (r.label, "all" if e.block is None else e.block, e.largest, e.smallest, e.condition, e.steps, e.exact)
        for r in results for e in r.jacobians))
    learned = [r for r in results if r.scales is not None]
    if learned:
        _write(directory / "alpha.csv", "model part layer entry value", (
            (r.label, part, *place, value) for r in learned for part, values in r.scales.alpha.items()
            for place, value in np.ndenumerate(values)))
        _write(directory / "s_qk.csv", "model layer head entry value", (
            (r.label, *place, value) for r in learned for place, value in np.ndenumerate(r.scales.qk)))
        _write(directory / "s_z.csv", "model token value occurrences", (
            (r.label, token, value, "" if counts is None else counts[token])
            for r in learned for token, value in enumerate(r.scales.logit)))


def _write(path: Path, columns: str, rows: Iterable[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, range(101)) if len(values) else np.zeros(0)


def _head(head: int | None) -> int | str:
    return "whole" if head is None else head
