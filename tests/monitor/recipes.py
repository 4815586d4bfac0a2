"""A recipe for tests that need one and train nothing, and a logger of a user's own."""

from pathlib import Path

from megatron_ngpt.config.recipe import Data, Dataset, Monitor, Recipe, Training
from megatron_ngpt.monitor.logger import Logger


def recipe(output: Path, loggers=("tensorboard",)) -> Recipe:
    """Of 10 steps."""
    data = Data(tokenizer="tokenizer.model", train=[Dataset(prefix="text")])
    return Recipe(data=data, training=Training(output=str(output), steps=10), monitor=Monitor(loggers=list(loggers)))


class Remembering(Logger):
    """Keeps what it is told; `broken` names methods that raise."""

    told: list = []  # noqa: RUF012
    broken: tuple = ()

    def __init__(self, run):
        self._note("init", run.output, run.start_step)

    def scalars(self, step, values):
        self._note("scalars", step, values)

    def text(self, step, name, text):
        self._note("text", step, name, text)

    def close(self):
        self._note("close")

    def _note(self, *what):
        if what[0] in self.broken:
            raise RuntimeError(f"{what[0]} is broken\nand more")
        self.told.append(what)


class NoLogger:
    """Is none."""
