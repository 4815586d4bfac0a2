"""The report: one HTML page that holds everything it shows, readable in light and in dark."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from megatron_ngpt.analysis.analyze import Result

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; background: Canvas; color: CanvasText; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .8rem; border-bottom: 1px solid #8886; text-align: right; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; background: white; border-radius: 6px; }
"""
HEALTHY = {
    "condition": "Condition numbers: largest over smallest singular value. In a healthy nGPT every head's are small (below 10 after long "
    "training) and do not grow with depth or time. The baseline's grow by orders of magnitude: directions that a head has lost.",
    "spectra": "Singular values: healthy spectra fall slowly. A cliff means that the matrix has fewer directions than its size.",
    "embeddings": "Embeddings: nGPT's norms are all 1. A few eigenvalues far above the median, or cosines far from 0, say that all entries "
    "share directions.",
    "jacobians": "The function: how far an output moves for a small move of its input. Near 1 at both ends information passes whole.",
    "scales": "Learned scales: α between 0.05 and 0.5 moves a state a part of its way at each block; an α near 0 is a block that "
    "does nothing. s_qk says how sharp heads may look, s_z how sure a token may be predicted: frequent ones have had more steps to grow.",
}


def page(results: list[Result], figures: list[Path], sample: torch.Tensor | None, tolerance: float) -> str:
    """The page's HTML; `figures` are embedded."""
    names = ", ".join(result.label for result in results)
    told = [f"<h1>Analysis of {html.escape(names)}</h1>", "<h2>Condition numbers</h2>", _matrices(results, tolerance)]
    if sample is None:
        told.append("<p>The function's Jacobians were not looked at: they need hidden states of real text, which --data gives.</p>")
    else:
        told += ["<h2>The network's function</h2>", _jacobians(results, len(sample))]
    for figure in figures:
        kind = figure.stem.split("-")[0]
        image = base64.b64encode(figure.read_bytes()).decode()
        told.append(f'<h2>{html.escape(figure.stem)}</h2><p>{HEALTHY[kind]}</p>')
        told.append(f'<img alt="{html.escape(figure.stem)}" src="data:image/png;base64,{image}">')
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Analysis</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(told)}</body></html>\n'


def _matrices(results: list[Result], tolerance: float) -> str:
    rows = []
    for matrix in dict.fromkeys(s.matrix for s in results[0].spectra):
        row = [f"W_{matrix}" + (" (heads)" if matrix in "qkvo" else "")]
        for result in results:
            parts = [s for layer in range(result.layers) for s in result.parts(matrix, layer)]
            conditions = [s.condition for s in parts]
            full = sum(s.rank(tolerance) == len(s.values) for s in parts)
            row += [f"{np.median(conditions):.3g}", f"{max(conditions):.3g}", f"{full} of {len(parts)}"]
        rows.append(row)
    heads = ["matrix"] + [f"{r.label}: {what}" for r in results for what in ("median", "worst", f"full rank at {tolerance:g}")]
    return _table(heads, rows)


def _jacobians(results: list[Result], tokens: int) -> str:
    rows = [
        [r.label, "all blocks" if e.block is None else f"block {e.block}", f"{e.largest:.3g}", f"{e.smallest:.3g}", f"{e.condition:.3g}"]
        for r in results for e in r.jacobians
    ]
    sides = ("=", "=", "=") if all(e.exact for r in results for e in r.jacobians) else ("≥", "≤", "≥")
    heads = [f"{name} {side}" for name, side in zip(("largest", "smallest", "condition"), sides, strict=True)]
    said = (
        f"Singular values of Jacobians at the hidden states of the data's first {tokens} tokens, all moved together. nGPT's are taken "
        "between tangent spaces of the sphere. After few steps the largest is a lower bound, the smallest an upper one."
    )
    return f"<p>{said}</p>" + _table(["model", "map", *heads], rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line('th', heads)}{''.join(line('td', row) for row in rows)}</table>"
