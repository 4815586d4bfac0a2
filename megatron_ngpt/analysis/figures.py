"""The figures of an analysis, models side by side, each with the colour of its place."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megatron_ngpt.analysis.embeddings import Embedding
from megatron_ngpt.analysis.results import Result
from megatron_ngpt.pages import COLOURS

CEILING = 1e16  # of a condition number that is shown: float64 knows no more
PANEL = (3.4, 2.8)  # inches


def figures(results: list[Result]) -> Iterator[tuple[str, Figure]]:
    """(name, figure), one at a time: `condition`, `spectra`, `jacobians` if there are any, `embeddings`, `scales` if a model has them."""
    yield "condition", _conditions(results)
    yield "spectra", _spectra(results)
    if any(result.jacobians for result in results):
        yield "jacobians", _jacobians(results)
    yield "embeddings", _embeddings(results)
    if any(result.scales for result in results):
        yield "scales", _scales(results)


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _of_matrices(results: list[Result]) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel for each kind of matrix, and one with the names of the models."""
    names = list(dict.fromkeys(spectrum.matrix for spectrum in results[0].spectra))
    figure, axes = _panels(2, 4)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
        handles = [axis.plot([], [], color=_colour(number), marker="o", label=r.label)[0] for number, r in enumerate(results)]
        axis.legend(handles=handles, loc="center", frameon=False, fontsize="large")
    return figure, list(zip(names, axes.flat, strict=False))


def _conditions(results: list[Result]) -> Figure:
    """Of each matrix by layer: the heads' median with a band from the best to the worst, or the whole matrix."""
    figure, panels = _of_matrices(results)
    for name, axis in panels:
        for number, result in enumerate(results):
            layers = range(result.layers)
            by_layer = [[min(s.condition, CEILING) for s in result.parts(name, layer)] for layer in layers]
            axis.plot(layers, [np.median(of) for of in by_layer], marker="o", markersize=4, color=_colour(number))
            axis.fill_between(layers, [min(of) for of in by_layer], [max(of) for of in by_layer], color=_colour(number), alpha=0.2, lw=0)
        parts = ", each head (band: best to worst)" if name in "qkvo" else ""
        axis.set(yscale="log", title=f"W_{name}{parts}", xlabel="layer", ylabel="condition number")
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest, highest = (f(axis.get_ylim()[end] for _, axis in panels) for end, f in ((0, min), (1, max)))
    for _, axis in panels:
        axis.set_ylim(max(lowest, 0.8), highest)
    return figure


def _spectra(results: list[Result]) -> Figure:
    """All singular values over the largest, of whole matrices, a line a layer: faint the first, strong the last."""
    figure, panels = _of_matrices(results)
    for name, axis in panels:
        for number, result in enumerate(results):
            for spectrum in result.spectra:
                if spectrum.matrix == name and spectrum.head is None:
                    places = np.linspace(0, 1, len(spectrum.values))
                    strength = 0.25 + 0.75 * (spectrum.layer + 1) / result.layers
                    shares = spectrum.values / max(spectrum.values[0], 1e-300)
                    axis.plot(places, np.maximum(shares, 1 / CEILING), color=_colour(number), alpha=strength, lw=1.1)
        axis.set(yscale="log", title=f"W_{name}", xlabel="place / number", ylabel="σ / largest σ")
        axis.title.set_fontsize(10)
    return figure


def _jacobians(results: list[Result]) -> Figure:
    figure, axes = _panels(1, 2)
    blocks, whole = axes.flat
    shown = [(number, result) for number, result in enumerate(results) if result.jacobians]
    for number, result in shown:
        of_blocks = [e for e in result.jacobians if e.block is not None]
        places, colour = [e.block for e in of_blocks], _colour(number)
        blocks.fill_between(places, [e.smallest for e in of_blocks], [e.largest for e in of_blocks], color=colour, alpha=0.15, lw=0)
        blocks.plot(places, [e.largest for e in of_blocks], marker="^", color=colour, label=f"{result.label}: largest")
        blocks.plot(places, [e.smallest for e in of_blocks], marker="v", ls=":", color=colour, label=f"{result.label}: smallest")
    blocks.axhline(1, color="#5d6670", lw=0.8)
    blocks.set(yscale="log", title="Jacobian of each block", xlabel="block", ylabel="singular value")
    blocks.xaxis.set_major_locator(MaxNLocator(integer=True))
    blocks.legend(fontsize="small", frameon=False)
    conditions = [min(result.jacobians[-1].condition, CEILING) for _, result in shown]
    bars = whole.barh(range(len(shown)), conditions, color=[_colour(number) for number, _ in shown], height=0.6)
    whole.bar_label(bars, [f" {condition:.3g}" for condition in conditions])
    whole.set(xscale="log", title="all blocks: condition number at least", yticks=range(len(shown)), xlim=(1, 10 * max(conditions)))
    whole.set_yticklabels([result.label for _, result in shown])
    whole.invert_yaxis()
    return figure


def _embeddings(results: list[Result]) -> Figure:
    figure, axes = _panels(2, 3)
    for row, end in enumerate(results[0].embeddings):
        found = [result.embeddings[row] for result in results]
        norms, eigen, cosines = axes[row]
        edges = np.linspace(0, 1.05 * max(1e-3, *(e.norms.max() for e in found)), 90)
        for number, (of_end, result) in enumerate(zip(found, results, strict=True)):
            style = {"color": _colour(number), "alpha": 0.55}
            norms.hist(of_end.norms, bins=edges, label=result.label, **style)
            eigen.plot(np.linspace(0, 1, len(of_end.eigenvalues)), over_median(of_end), color=_colour(number))
            cosines.hist(of_end.cosines, bins=np.linspace(-1, 1, 201), density=True, **style)
        norms.set(title=f"{end.end}: norms", xlabel="‖e‖", ylabel="entries", yscale="log")
        eigen.set(title=f"{end.end}: eigenvalues / median", yscale="log", xlabel="place / number")
        cosines.set(title=f"{end.end}: cosines of pairs", xlabel="cosine", ylabel="density", xlim=(-0.6, 1))
    axes[0, 0].legend(frameon=False)
    return figure


def over_median(found: Embedding) -> np.ndarray:
    """Eigenvalues over their median, as the paper shows them."""
    return np.maximum(found.eigenvalues / max(np.median(found.eigenvalues), 1e-300), 1 / CEILING)


def _scales(results: list[Result]) -> Figure:
    shown = [result for result in results if result.scales is not None]
    figure, axes = _panels(len(shown), 4)
    for result, (alpha, heads, units, logit) in zip(shown, axes, strict=True):
        _by_layer(alpha, result.scales.alpha, {"attention": "attention", "mlp": "feed-forward"})
        alpha.set(title=f"{result.label}: eigen learning rates α")
        _by_layer(units, result.scales.units, {"up": "s_u", "gate": "s_g"})
        units.set(title="s_u and s_g")
        heads.grid(False)
        image = heads.imshow(np.abs(result.scales.qk).mean(2), aspect="auto", cmap="viridis")
        heads.set(title="s_qk, mean of a head", xlabel="key/value head", ylabel="layer")
        for axis in (heads.xaxis, heads.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=heads)
        _logit(logit, result)
    return figure


def _by_layer(axis: Axes, parts: dict[str, np.ndarray], names: dict[str, str]) -> None:
    for number, (part, values) in enumerate(parts.items()):
        layers = range(len(values))
        axis.plot(values.mean(1), marker="o", markersize=4, color=_colour(number), label=f"{names[part]}, mean")
        axis.fill_between(layers, *np.quantile(values, [0.1, 0.9], axis=1), color=_colour(number), alpha=0.2, lw=0)
    axis.set(xlabel="layer (band: 10% to 90% of the entries)", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize="small")


def _logit(axis: Axes, result: Result) -> None:
    values = result.scales.logit
    if result.counts is None:
        axis.hist(values, bins=60, color=_colour(0))
        axis.set(title="s_z", xlabel="s_z", ylabel="entries")
        return
    often = result.counts + 1
    axis.scatter(often, values, s=3, alpha=0.35, color=_colour(0), lw=0)
    edges = np.unique(np.geomspace(1, often.max() + 1, 12).astype(int))
    for first, last in pairwise(edges):
        within = (often >= first) & (often < last)
        if within.any():
            axis.plot([first, max(last - 1, first)], [np.median(values[within])] * 2, color="black", lw=2)
    axis.set(title="s_z by token frequency (black: medians)", xscale="log", xlabel="occurrences + 1", ylabel="s_z")


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
