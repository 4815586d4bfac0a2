"""The one thing the training loop talks to: it tells each value once, and the monitor writes it wherever it belongs."""

import logging
from pathlib import Path
from typing import TextIO

import numpy as np

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.monitor.events import EventLog
from megatron_ngpt.monitor.logger import RunInfo
from megatron_ngpt.monitor.loggers import Loggers
from megatron_ngpt.monitor.metrics import MetricsLog, metrics_file
from megatron_ngpt.monitor.progress import ProgressView
from megatron_ngpt.monitor.table import Value, unhealthy

log = logging.getLogger(__name__)


class Monitor:
    """Metrics, loggers and progress of a run of `recipe` that continues after `start_step`.

    Rank 0 writes; on any other rank every call returns at once. `console` is the stream that a person reads.
    """

    def __init__(self, recipe: Recipe, start_step: int, rank: int, console: TextIO):
        self._writes = rank == 0
        if not self._writes:
            return
        self._recipe, self._output = recipe, Path(recipe.training.output)
        self._metrics = MetricsLog(metrics_file(self._output))
        self._events = EventLog(self._output)
        self._told = False
        self._progress = ProgressView(recipe.training.steps, start_step, console)
        self._go_on_after(start_step)

    def roll_back(self, step: int) -> None:
        """The run goes on after `step`: what was told of later ones is void."""
        if self._writes:
            self._loggers.close()
            self._go_on_after(step)

    def _go_on_after(self, step: int) -> None:
        self._metrics.cut_after(step)
        self._newest: dict[str, Value] = {}
        self._unhealthy = {}.keys()
        self._loggers = Loggers(self._recipe.monitor.loggers, RunInfo(self._output, self._recipe, step), self.message)

    def scalars(self, step: int, values: dict[str, Value]) -> None:
        """The values known after a step (1-based), by the names that they have in the table of metrics (`monitor/table.py`)."""
        if not self._writes:
            return
        self._newest |= values
        if "loss" in values:
            values = values | self._judged(step)
        self._metrics.append({"step": step} | values)
        self._tell_problem()
        self._loggers.scalars(step, values)
        if "loss" in values:
            self._progress.update(step, values)
        if "valid_loss" in values:
            self.message(f"step {step} · validation loss {values['valid_loss']:.4f}")

    def message(self, text: str) -> None:
        """Tell the person, and the log, something in a line."""
        if not self._writes:
            return
        self._progress.message(text)
        log.info(text)

    def histograms(self, step: int, values: dict[str, np.ndarray]) -> None:
        """Many numbers of one kind, by name, after `step`: how they are spread."""
        if self._writes:
            for name, numbers in values.items():
                self._loggers.histogram(step, name, numbers)

    def text(self, step: int, name: str, text: str) -> None:
        """A text of `step`, such as a sample that was generated after it."""
        if self._writes:
            log.info("step %d: %s\n%s", step, name, text)
            self._loggers.text(step, name, text)

    def event(self, event: str, step: int, **details) -> None:
        """Something happened to the run (one of `events.KINDS`), of which `step` was the last whole step."""
        if self._writes:
            self._events.append(event, step, **details)

    def sync(self) -> None:
        """Put `metrics.jsonl` on the disk."""
        if self._writes:
            self._metrics.sync()

    def checkpoint(self, path: Path, step: int, seconds: float, stall: float) -> None:
        """The checkpoint of `step` at `path` is complete: seconds that it took, and that training waited for it."""
        if self._writes:
            log.info("checkpoint %s complete after %.1f s; training waited %.2f s", path, seconds, stall)
            self._loggers.scalars(step, {"checkpoint_seconds": seconds, "checkpoint_stall_seconds": stall})
            self.event("checkpoint", step, path=str(path), seconds=seconds, stall_seconds=stall)

    def close(self) -> None:
        """Write out everything; the run is over or has failed."""
        if not self._writes:
            return
        self._metrics.close()
        self._events.close()
        self._tell_problem()
        self._loggers.close()
        self._progress.close()

    def _judged(self, step: int) -> dict[str, Value]:
        """How many of the newest values are out of their range; which, where these are others than before."""
        found = unhealthy(self._newest)
        if found.keys() != self._unhealthy:
            self._unhealthy = found.keys()
            self.text(step, "out_of_range", "\n".join(found.values()) or "every value is in its healthy range")
        return {"out_of_range": len(found)}

    def _tell_problem(self) -> None:
        """Once, when a problem with `metrics.jsonl` begins."""
        if self._metrics.problem and not self._told:
            self.message(f"warning: {self._metrics.problem}")
        self._told = self._metrics.problem is not None
