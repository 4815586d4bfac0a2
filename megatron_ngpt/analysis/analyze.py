"""`ngpt analyze`: everything about the weights of one or several models, in a directory that appears when it is complete."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from megatron_ngpt.analysis.embeddings import NAMES, embedding
from megatron_ngpt.analysis.function import Network
from megatron_ngpt.analysis.jacobian import extremes
from megatron_ngpt.analysis.matrices import spectra
from megatron_ngpt.analysis.results import Result
from megatron_ngpt.analysis.scales import scales
from megatron_ngpt.analysis.tables import write_tables
from megatron_ngpt.analysis.texts import Text, open_text
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.catalogue import find_checkpoint, from_checkpoint
from megatron_ngpt.checkpoint.exported import CONFIG
from megatron_ngpt.checkpoint.files import PARTIAL, remove, sync_directory
from megatron_ngpt.errors import ConfigError, NgptError


@dataclass(frozen=True)
class Choices:
    """What the command's options say.

    Attributes:
        data: a dataset's prefix for all models; None: each run's own validation data.
        tokens: of it, at whose hidden states Jacobians are taken.
        steps: most directions for a Jacobian.
        tolerance: of a rank, over the largest singular value.
    """

    data: str | None = None
    tokens: int = 64
    steps: int = 100
    tolerance: float = 1e-3


def run(models: list[Path], directory: Path, choices: Choices) -> None:
    """Analyse `models` and write figures, CSV and `report.html` to `directory`.

    Raises:
        ConfigError: matplotlib is missing, there is something at `directory`, or a model or the dataset cannot be used.
        NgptError: a checkpoint is damaged, or the directory cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("ngpt analyze: needs matplotlib; pip install 'megatron_ngpt[study]'")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ConfigError(f"--out: {directory} exists; valid is a new name or an empty directory")
    named = list(zip(models, labels(models), strict=True))
    for path, label in named:  # what is wrong with any of them is told before the work on the first
        weights = Weights(path if (path / CONFIG).is_file() else find_checkpoint(path, "MODEL"), label)
        open_text(weights, choices.data, choices.tokens)
    unfinished = directory.with_name(directory.name + PARTIAL)
    try:
        remove(unfinished)
        unfinished.mkdir(parents=True)
        _write(unfinished, _results(named, choices), choices)
        os.rename(unfinished, directory)
        sync_directory(directory.absolute().parent)
    except OSError as error:
        raise NgptError(f"--out: {directory} could not be written: {error.strerror or error}") from error
    finally:
        remove(unfinished)


def labels(models: list[Path]) -> list[str]:
    """A name for each: the end of its path that no other has, without `checkpoints`; of the same path given twice, the whole with a
    number."""
    parts = [[part for part in path.resolve().parts if part != "checkpoints"] for path in models]

    def label(number: int) -> str:
        mine = parts[number]
        for size in range(1, len(mine) + 1):
            name = "/".join(mine[-size:])
            if sum(other[-size:] == mine[-size:] for other in parts) == 1 and not (size < 2 and name.startswith("step-")):
                return name
        return f"{'/'.join(mine[-2:])} ({number + 1})"

    return [label(number) for number in range(len(models))]


def _results(named: list[tuple[Path, str]], choices: Choices) -> list[Result]:
    console, results = Console(stderr=True), []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = [bar.add_task(label, total=None) for _, label in named]
        for (path, label), task in zip(named, tasks, strict=True):
            work = partial(_analysed, label=label, choices=choices, told=partial(bar.update, task))
            results.append(work(path) if (path / CONFIG).is_file() else from_checkpoint(path, "MODEL", work))
    return results


def _analysed(path: Path, label: str, choices: Choices, told: Callable) -> Result:
    weights = Weights(path, label)
    text = open_text(weights, choices.data, choices.tokens)
    told(completed=0, total=weights.model.layers * (2 if text else 1) + len(NAMES) + 1 + (1 if text else 0))
    return analyse(weights, text, choices.steps, partial(told, advance=1))


def analyse(weights: Weights, text: Text | None, steps: int, tick: Callable[[], None] = lambda: None) -> Result:
    """Everything about one model; `tick` is called after each layer, each end, the scales and each Jacobian."""

    def told(value):
        tick()
        return value

    layers = range(weights.model.layers)
    of_matrices = [s for layer in layers for s in told(list(spectra(weights, layer)))]
    of_ends = [told(embedding(weights, end)) for end in NAMES]
    of_scales, jacobians = told(scales(weights)), []
    if text:
        network = Network(weights, text.tokens_T)
        jacobians = [told(extremes(network, block, steps)) for block in (*layers, None)]
    at = (text.name, len(text.tokens_T)) if text else None
    counts = text.counts_V if text else None
    return Result(weights.label, weights.described(), len(layers), of_matrices, of_ends, of_scales, jacobians, counts, at)


def _write(directory: Path, results: list[Result], choices: Choices) -> None:
    from megatron_ngpt.analysis.figures import figures  # matplotlib is there, as `run` has seen
    from megatron_ngpt.analysis.page import report

    shown = {}
    for name, figure in figures(results):
        figure.savefig(directory / f"{name}.png", dpi=110)
        shown[name] = (directory / f"{name}.png").read_bytes()
    write_tables(directory, results, choices.tolerance)
    (directory / "report.html").write_text(report(results, shown, choices.tolerance), "utf-8")
