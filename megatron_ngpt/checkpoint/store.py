"""Saving the checkpoints of a run: one after another, beside training, and no more on the disk than the recipe keeps."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_ngpt.checkpoint.catalogue import DAMAGED, LATEST, Catalogue, checkpoint_name
from megatron_ngpt.checkpoint.files import OBSOLETE, PARTIAL, remove, retire, write_text
from megatron_ngpt.checkpoint.saver import Directory, Saved, Saver
from megatron_ngpt.errors import NgptError
from megatron_ngpt.parallel.shards import Shard

log = logging.getLogger(__name__)


class CheckpointStore:
    """Saves checkpoints of a run and keeps the directory tidy (collective to construct).

    Args:
        output: the run directory, on a file system that all ranks share.
        keep: how many of the newest stay.
        keep_every: those whose step is a multiple of this stay for good; 0 = none.
        check: called on rank 0 before anything is written or removed; raises NgptError where this run may not.
    """

    def __init__(self, output: Path, keep: int, keep_every: int, check: Callable[[], None] = lambda: None):
        self.catalogue = Catalogue(output)
        self.check, self._told = check, set()
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
        wait_for_room: Callable[[str], None] | None = None,
    ) -> None:
        """Begin to write the checkpoint of `step` (collective), as `Saver.start`; returns when the shards are copied.

        When it is complete, `latest` moves to it, and those that need not stay are removed. On a full disk they go first, and with
        `wait_for_room` (which is told so, in a line) the save waits. If it fails, the newest good ones are as they were.
        """
        path = self.catalogue.directory / checkpoint_name(step)
        directory = Directory(self.check, self.make_room, wait_for_room or (lambda _: None), self.tidy)
        serial = self._next_serial
        self._saver.start(
            path, shards, base_optimizer, step, lambda: {**state, "serial": serial()}, attached, directory, wait_for_room is not None
        )

    def finished(self) -> Saved | None:
        """The save under way if it is over, told once."""
        return self._saver.finished()

    def wait(self) -> Saved | None:
        """The save under way, when it is over; None if there is none."""
        return self._saver.wait()

    def set_aside(self, path: Path) -> Path:
        """Put a damaged checkpoint out of the way; returns where it is now."""
        self.check()
        aside = path.with_name(path.name + DAMAGED)
        remove(aside)
        os.rename(path, aside)
        return aside

    def tidy(self) -> None:
        """Point `latest` to the newest checkpoint, and remove what need not stay (one rank calls it).

        Each entry for itself: one that cannot be removed is a line in the log, and keeps no other. The next save tries again.
        """
        try:
            self.check()
            complete, damaged = self.catalogue.survey(pass_over=True)
        except (OSError, NgptError) as error:
            log.warning("%s could not be tidied: %s", self.catalogue.directory, error)
            return
        if not complete:
            return
        self._try(self._point, complete[-1][0].name)
        for path, _ in damaged:
            self._try(self.set_aside, path)
        for path in self._surplus(complete, self.keep):
            self._try(retire, path)
        for path in self._looked_at(complete):
            self._try(remove, path)
        self._sweep()

    def make_room(self) -> bool:
        """On a full disk: remove what the checkpoint that is being written would have replaced, never the last good one; returns whether
        anything was removed (one rank calls it)."""
        self.check()
        complete, _ = self.catalogue.survey(pass_over=True)
        if not complete:
            return False
        removed = [self._try(retire, path) for path in self._surplus(complete, max(1, self.keep - 1))]
        removed += [self._try(remove, path) for path in self.catalogue.set_aside()]
        return any(removed) | self._sweep()

    def _surplus(self, complete: list[tuple[Path, dict]], keep: int) -> list[Path]:
        """What is left to remove when the `keep` newest stay, and those that stay for good."""
        return [path for path, state in complete[:-keep] if not (self.keep_every and state["step"] % self.keep_every == 0)]

    def _looked_at(self, complete: list[tuple[Path, dict]]) -> list[Path]:
        """Directories put aside that have had their time: as many good checkpoints as are kept, for the not finite ones later ones."""
        found = self.catalogue.set_aside() if len(complete) >= self.keep else []
        for path in self.catalogue.not_finite():
            if sum(good.name > path.name for good, _ in complete) >= self.keep:
                found.append(path)
        return found

    def _point(self, newest: str) -> None:
        """Let `latest` say so."""
        if self.catalogue.latest() != newest:
            write_text(self.catalogue.directory / LATEST, newest + "\n")

    def _sweep(self) -> bool:
        """Remove what killed work left; returns whether there was anything."""
        try:
            leftovers = [path for path in self.catalogue.directory.iterdir() if path.name.endswith((PARTIAL, OBSOLETE))]
        except OSError:
            return False
        return any([self._try(remove, path) for path in leftovers])

    def _try(self, action: Callable, subject: Path | str) -> bool:
        """Whether it went well; what did not is a line in the log, once."""
        try:
            action(subject)
        except (OSError, NgptError) as error:
            told = f"{getattr(error, 'filename', None) or subject}: {getattr(error, 'strerror', None) or error}"
            if told not in self._told:
                log.warning("%s could not be tidied: %s; tried again with the next save", self.catalogue.directory, told)
            self._told.add(told)
            return False
        return True

    def _next_serial(self) -> int:
        return 1 + max((state.get("serial", 0) for _, state in self.catalogue.survey(pass_over=True)[0]), default=0)
