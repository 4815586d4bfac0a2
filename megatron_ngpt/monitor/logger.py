"""What a logger is: a class that is told what a run tells of itself. The project's own are of this kind, and so is a user's."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.monitor.table import Value


@dataclass(frozen=True)
class RunInfo:
    """The run that a logger is for.

    Attributes:
        output: its directory, where a logger may have files of its own.
        recipe: as it was resolved.
        start_step: the run goes on after this step, 0 for a new one; what was told of later steps before is void.
    """

    output: Path
    recipe: Recipe
    start_step: int


class Logger:
    """Base of all loggers: each method does nothing, and a logger has those that it needs.

    Loggers live on rank 0, between two steps of which training waits for them. One that raises is told of once; it is called again, and
    the run goes on.
    """

    def __init__(self, run: RunInfo):
        """Open what `run` is told to."""

    def scalars(self, step: int, values: dict[str, Value]) -> None:
        """What is known after `step` (1-based), by the names of the table of metrics: a line of `metrics.jsonl`. `table.flat` makes
        numbers of it alone."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """Many numbers of one kind after `step`, now and then: a learned scale of a layer, say."""

    def text(self, step: int, name: str, text: str) -> None:
        """A text of `step`: a generated sample, say."""

    def close(self) -> None:
        """Write out everything; the run is over or has failed."""
