"""`ngpt analyze`: everything about the weights of one or several models, in a directory that appears when it is complete."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from megatron_ngpt.analysis.embeddings import NAMES, Embedding, embedding
from megatron_ngpt.analysis.function import Network
from megatron_ngpt.analysis.jacobian import Extremes, extremes
from megatron_ngpt.analysis.matrices import Spectrum, spectra
from megatron_ngpt.analysis.scales import Scales, open_data, scales
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.files import PARTIAL, remove, sync_directory
from megatron_ngpt.errors import ConfigError, NgptError


@dataclass(frozen=True)
class Result:
    """What was found of one model; `jacobians` is empty where no dataset was given, `scales` None for the baseline."""

    label: str
    layers: int
    spectra: list[Spectrum]
    embeddings: list[Embedding]
    scales: Scales | None
    jacobians: list[Extremes]

    def parts(self, matrix: str, layer: int) -> list[Spectrum]:
        """Of the heads of a matrix of attention, or of a whole one of the feed-forward."""
        found = [s for s in self.spectra if s.matrix == matrix and s.layer == layer]
        return [s for s in found if s.head is not None] or found


def run(models: list[Path], directory: Path, data: str | None, tokens: int, steps: int, tolerance: float) -> None:
    """Analyse `models` and write figures, CSV and `report.html` to `directory`.

    Raises:
        ConfigError: matplotlib is missing, there is something at `directory`, or a model or the dataset cannot be used.
        NgptError: a checkpoint is damaged, or the directory cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("ngpt analyze: needs matplotlib; pip install 'megatron_ngpt[study]'")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"--out: {directory} exists; valid is a new name or an empty directory")
    sources = [Weights(path, label) for path, label in zip(models, labels(models), strict=True)]
    dataset, counts = open_data(data, {s.label: s.vocabulary for s in sources}) if data else (None, None)
    sample = None if dataset is None else torch.from_numpy(dataset.tape[:tokens].astype(np.int64))
    unfinished = directory.with_name(directory.name + PARTIAL)
    try:
        remove(unfinished)
        unfinished.mkdir(parents=True)
        _write(unfinished, sources, sample, counts, steps, tolerance)
        os.rename(unfinished, directory)
        sync_directory(directory.absolute().parent)
    except OSError as error:
        raise NgptError(f"--out: {directory} could not be written: {error.strerror or error}") from error
    finally:
        remove(unfinished)


def labels(models: list[Path]) -> list[str]:
    """A name for each: its directory's, or where two have the same, that with its number."""
    names = [path.resolve().name for path in models]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, 1)]


def _write(directory: Path, sources: list[Weights], sample: torch.Tensor | None, counts, steps: int, tolerance: float) -> None:
    from megatron_ngpt.analysis.figures import figures
    from megatron_ngpt.analysis.page import page
    from megatron_ngpt.analysis.tables import write_tables

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        results = []
        for source in sources:
            task = bar.add_task(source.label, total=source.model.layers * (1 + (sample is not None)) + 3)
            results.append(analyse(source, sample, steps, lambda task=task: bar.advance(task)))
    shown = []
    for name, figure in figures(results, counts):
        shown.append(directory / f"{name}.png")
        figure.savefig(shown[-1], dpi=110)
    write_tables(directory, results, counts, tolerance)
    (directory / "report.html").write_text(page(results, shown, sample, tolerance), "utf-8")


def analyse(source: Weights, sample: torch.Tensor | None, steps: int, tick: Callable[[], None] = lambda: None) -> Result:
    """Everything about one model; `tick` is called after each layer, each end and the scales."""

    def told(value):
        tick()
        return value

    layers = range(source.model.layers)
    of_matrices = [s for layer in layers for s in told(list(spectra(source, layer)))]
    of_ends = [told(embedding(source, end)) for end in NAMES]
    of_scales, jacobians = told(scales(source)), []
    if sample is not None:
        network = Network(source, sample)
        jacobians = [told(extremes(network, block, steps)) for block in layers]
        jacobians.append(extremes(network, None, steps))
    return Result(source.label, len(layers), of_matrices, of_ends, of_scales, jacobians)
