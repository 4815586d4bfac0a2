"""The figures of an analysis, models side by side, as PNG files."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from megatron_ngpt.analysis.analyze import Result


def figures(results: list[Result], counts: np.ndarray | None) -> Iterator[tuple[str, Figure]]:
    """(name, figure), one at a time; `counts`: how often each token occurs."""
    yield "condition", _conditions(results)
    yield "spectra", _spectra(results)
    yield "embeddings", _embeddings(results)
    if any(result.jacobians for result in results):
        yield "jacobians", _jacobians(results)
    for result in results:
        if result.scales is not None:
            yield f"scales-{result.label}", _scales(result, counts)


def _panels(count: int, height: float = 3.2) -> tuple[Figure, list]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.axis("off")
    return figure, list(axes)


def _conditions(results: list[Result]) -> Figure:
    """Of each matrix by layer: the heads' median with a band from the best to the worst, or the whole matrix."""
    names = list(dict.fromkeys(spectrum.matrix for spectrum in results[0].spectra))
    figure, axes = _panels(len(names))
    for name, axis in zip(names, axes, strict=False):
        for number, result in enumerate(results):
            layers = range(result.layers)
            by_layer = [[max(1.0, min(s.condition, 1e16)) for s in result.parts(name, layer)] for layer in layers]
            axis.plot(layers, [np.median(of) for of in by_layer], marker="o", color=f"C{number}", label=result.label)
            axis.fill_between(layers, [min(of) for of in by_layer], [max(of) for of in by_layer], color=f"C{number}", alpha=0.2)
        axis.set(yscale="log", title=f"W_{name}" + (", heads" if name in "qkvo" else ""), xlabel="layer", ylabel="condition number")
    axes[0].legend()
    return figure


def _spectra(results: list[Result]) -> Figure:
    """All singular values over the largest, of whole matrices, a line a layer."""
    names = list(dict.fromkeys(spectrum.matrix for spectrum in results[0].spectra))
    figure, axes = _panels(len(names))
    for name, axis in zip(names, axes, strict=False):
        for number, result in enumerate(results):
            wholes = [s for s in result.spectra if s.matrix == name and s.head is None]
            for spectrum in wholes:
                places = np.linspace(0, 1, len(spectrum.values))
                label = result.label if spectrum is wholes[0] else None
                axis.plot(places, spectrum.values / max(spectrum.values[0], 1e-300), color=f"C{number}", alpha=0.6, label=label)
        axis.set(yscale="log", title=f"W_{name}", xlabel="place / number", ylabel="σ / σ max")
    axes[0].legend()
    return figure


def _embeddings(results: list[Result]) -> Figure:
    figure, axes = _panels(6)
    for number, result in enumerate(results):
        for row, found in enumerate(result.embeddings):
            norms, eigen, cosines = axes[3 * row : 3 * row + 3]
            norms.hist(found.norms, bins=60, color=f"C{number}", alpha=0.6, label=result.label)
            eigen.plot(found.eigenvalues / max(np.median(found.eigenvalues), 1e-300), color=f"C{number}", label=result.label)
            cosines.hist(found.cosines, bins=np.linspace(-1, 1, 101), density=True, color=f"C{number}", alpha=0.6)
            norms.set(title=f"{found.end}: norms", xlabel="‖e‖", ylabel="entries")
            eigen.set(title=f"{found.end}: eigenvalues / median", yscale="log", xlabel="place")
            cosines.set(title=f"{found.end}: cosines of pairs", xlabel="cosine", ylabel="density")
    axes[0].legend()
    return figure


def _jacobians(results: list[Result]) -> Figure:
    figure, axes = _panels(2)
    for number, result in enumerate(results):
        blocks = [e for e in result.jacobians if e.block is not None]
        places = [e.block for e in blocks]
        axes[0].plot(places, [e.largest for e in blocks], marker="^", color=f"C{number}", label=f"{result.label}, largest ≥")
        axes[0].plot(places, [e.smallest for e in blocks], marker="v", ls=":", color=f"C{number}", label=f"{result.label}, smallest ≤")
        axes[1].bar(number, next(e.condition for e in result.jacobians if e.block is None), color=f"C{number}")
    axes[0].set(yscale="log", title="Jacobians of blocks", xlabel="block", ylabel="singular value")
    axes[0].legend(fontsize="small")
    axes[1].set(yscale="log", title="whole map: condition number ≥", xticks=range(len(results)))
    axes[1].set_xticklabels([result.label for result in results])
    return figure


def _scales(result: Result, counts: np.ndarray | None) -> Figure:
    figure, axes = _panels(3)
    for name, values in result.scales.alpha.items():
        axes[0].plot(values.mean(1), marker="o", label=f"{name}, mean")
        axes[0].fill_between(range(len(values)), *np.quantile(values, [0.1, 0.9], axis=1), alpha=0.2)
    axes[0].set(title=f"{result.label}: eigen learning rates", xlabel="layer", ylabel="α", ylim=(0, None))
    axes[0].legend()
    image = axes[1].imshow(np.abs(result.scales.qk).mean(2), aspect="auto")
    axes[1].set(title="s_qk, mean", xlabel="key/value head", ylabel="layer")
    figure.colorbar(image, ax=axes[1])
    if counts is None:
        axes[2].hist(result.scales.logit, bins=60)
        axes[2].set(title="s_z", xlabel="s_z", ylabel="entries")
    else:
        axes[2].scatter(counts[: len(result.scales.logit)] + 1, result.scales.logit, s=3)
        axes[2].set(title="s_z by token frequency", xscale="log", xlabel="occurrences + 1", ylabel="s_z")
    return figure
