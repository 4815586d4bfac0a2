"""The numbers of an analysis as CSV files: a line a number, with what it is of."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megatron_ngpt.analysis.results import Result


def write_tables(directory: Path, results: list[Result], tolerance: float) -> None:
    """`matrices.csv`, `singular_values.csv`, `embeddings.csv`, `jacobians.csv` if there are any, and for nGPT `alpha.csv`, `s_qk.csv`,
    `s_u_s_g.csv` and `s_z.csv`."""
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
    if any(result.jacobians for result in results):
        columns = "model block largest_at_least largest_residual smallest_at_most smallest_residual condition_at_least steps exact"
        _write(directory / "jacobians.csv", columns, (
            (r.label, "all" if e.block is None else e.block, e.largest, e.largest_residual, e.smallest, e.smallest_residual, e.condition,
             e.steps, e.exact)
            for r in results for e in r.jacobians))
    learned = [r for r in results if r.scales is not None]
    if learned:
        _write(directory / "alpha.csv", "model part layer entry value", _by_part((r.label, r.scales.alpha) for r in learned))
        _write(directory / "s_u_s_g.csv", "model part layer entry value", _by_part((r.label, r.scales.units) for r in learned))
        _write(directory / "s_qk.csv", "model layer head entry value", (
            (r.label, *place, value) for r in learned for place, value in np.ndenumerate(r.scales.qk)))
        _write(directory / "s_z.csv", "model token value occurrences", (
            (r.label, token, value, "" if r.counts is None else r.counts[token])
            for r in learned for token, value in enumerate(r.scales.logit)))


def _by_part(found: Iterable[tuple[str, dict[str, np.ndarray]]]) -> Iterable[tuple]:
    return ((label, part, *place, value) for label, parts in found for part, values in parts.items()
            for place, value in np.ndenumerate(values))


def _write(path: Path, columns: str, rows: Iterable[tuple]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns.split())
        writer.writerows(rows)


def _percentiles(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, range(101)) if len(values) else np.zeros(0)


def _head(head: int | None) -> int | str:
    return "whole" if head is None else head
