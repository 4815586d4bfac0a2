"""Saving the checkpoints of a run: one after another, beside training, and no more on the disk than the recipe keeps."""

import logging
import os
from pathlib import Path

import torch

from megatron_ngpt.checkpoint.catalogue import DAMAGED, LATEST, Catalogue, checkpoint_name
from megatron_ngpt.checkpoint.files import OBSOLETE, PARTIAL, remove, retire, write_text
from megatron_ngpt.checkpoint.saver import Saved, Saver
from megatron_ngpt.errors import CheckpointError
from megatron_ngpt.parallel.shards import Shard

log = logging.getLogger(__name__)


class CheckpointStore:
    """Saves checkpoints of a run and keeps the directory tidy (collective to construct).

    Args:
        output: the run directory, on a file system that all ranks share.
        keep: how many of the newest stay.
        keep_every: those whose step is a multiple of this stay for good; 0 = none.
    """

    def __init__(self, output: Path, keep: int, keep_every: int):
        self.catalogue = Catalogue(output)
        self.keep, self.keep_every = keep, keep_every
        self._saver = Saver()

    def prepare(self, shards: dict[str, Shard]) -> None:
        """Make ready for saves, as `Saver.prepare`."""
        self._saver.prepare(shards)

    def save(
        self,
        step: int,
        shards: dict[str, Shard],
        base_optimizer: torch.optim.Optimizer | None,
        state: dict,
        attached: dict[str, bytes] | None = None,
    ) -> None:
        """Begin to write the checkpoint of `step` (collective), as `Saver.start`; returns when the shards are copied.

        When it is complete, `latest` moves to it, and those that need not stay are removed. If it fails, earlier ones are as they were.
        """
        path = self.catalogue.directory / checkpoint_name(step)
        self._saver.start(path, shards, base_optimizer, step, lambda: {**state, "serial": self._next_serial()}, attached, self.tidy)

    def finished(self) -> Saved | None:
        """The save under way if it is over, told once."""
        return self._saver.finished()

    def wait(self) -> Saved | None:
        """The save under way, when it is over; None if there is none."""
        return self._saver.wait()

    def set_aside(self, path: Path) -> Path:
        """Put a damaged checkpoint out of the way; returns where it is now."""
        aside = path.with_name(path.name + DAMAGED)
        remove(aside)
        os.rename(path, aside)
        return aside

    def tidy(self) -> None:
        """Point `latest` to the newest checkpoint, and remove what need not stay (one rank calls it). A failure is logged: no
        checkpoint depends on it, and the next save tries again."""
        try:
            self._tidy()
        except (OSError, CheckpointError):
            log.exception("%s could not be tidied", self.catalogue.directory)

    def _tidy(self) -> None:
        complete, damaged = self.catalogue.survey()
        if not complete:
            return
        newest = complete[-1][0].name
        if self.catalogue.latest() != newest:
            write_text(self.catalogue.directory / LATEST, newest + "\n")
        for path, _ in damaged:
            self.set_aside(path)
        for path, state in complete[: -self.keep]:
            if not (self.keep_every and state["step"] % self.keep_every == 0):
                retire(path)
        if len(complete) >= self.keep:
            for path in self.catalogue.set_aside():
                remove(path)
        for leftover in self.catalogue.directory.iterdir():
            if leftover.name.endswith((PARTIAL, OBSOLETE)):
                remove(leftover)

    def _next_serial(self) -> int:
        return 1 + max((state.get("serial", 0) for _, state in self.catalogue.survey()[0]), default=0)
