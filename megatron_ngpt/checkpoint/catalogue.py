"""The checkpoints that a run directory holds: which are whole, which is newest, which one a run or a command means.

    OUTPUT/checkpoints/step-00000010/             one checkpoint, complete as soon as it has this name
    OUTPUT/checkpoints/step-00000010.damaged/     one that was found damaged, out of the way
    OUTPUT/checkpoints/step-00000010.notfinite/   one that was saved with infinite or NaN values: for a look, never taken for a checkpoint
    OUTPUT/checkpoints/latest                     the name of the one saved last, for people and scripts; nothing here relies on it

Imports no torch: looking is quick.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from megatron_ngpt.checkpoint.files import OBSOLETE, PARTIAL
from megatron_ngpt.checkpoint.seal import STATE, read_state
from megatron_ngpt.errors import CheckpointError, ConfigError, DamagedError

DAMAGED = ".damaged"  # ends the name of a checkpoint that was set aside
NOT_FINITE = ".notfinite"  # ends the name of what was saved with values that are not finite
LATEST = "latest"

_NAME = re.compile(r"step-(\d{8,})")
T = TypeVar("T")
log = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """The name of a step's checkpoint directory."""
    return f"step-{step:08d}"


class Catalogue:
    """What lies in `OUTPUT/checkpoints`.

    Newest means saved last: a run that went back to an earlier step and overtook it has left higher steps behind. Each
    checkpoint's state carries a `serial` for that, one more than the highest before it.
    """

    def __init__(self, output: Path):
        self.directory = Path(output) / "checkpoints"

    def named(self) -> list[Path]:
        """Everything with a checkpoint's name, whole or not, by step."""
        return sorted(p for p in self._entries() if _NAME.fullmatch(p.name) and os.path.isdir(p))

    def set_aside(self) -> list[Path]:
        """The damaged ones that were put out of the way."""
        return sorted(p for p in self._entries() if p.name.endswith(DAMAGED))

    def not_finite(self) -> list[Path]:
        """What was saved with values that are not finite, by step."""
        return sorted(p for p in self._entries() if p.name.endswith(NOT_FINITE))

    def survey(self, pass_over: bool = False) -> tuple[list[tuple[Path, dict]], list[tuple[Path, str]]]:
        """Complete checkpoints with their states, in the order they were saved; the others, with what is wrong with each.

        Reads the small files of all. What cannot be judged (another format, a disk that does not answer) raises CheckpointError, or
        with `pass_over` is in neither list.
        """
        complete, damaged = [], []
        for path in self.named():
            try:
                complete.append((path, read_state(path)))
            except DamagedError as error:
                damaged.append((path, str(error)))
            except CheckpointError:
                if not pass_over:
                    raise
        return sorted(complete, key=lambda entry: (entry[1].get("serial", 0), entry[1]["step"])), damaged

    def newest(self) -> Path | None:
        """The checkpoint saved last among the complete ones."""
        complete, _ = self.survey()
        return complete[-1][0] if complete else None

    def latest(self) -> str | None:
        """The name in `latest`; None without one."""
        try:
            return (self.directory / LATEST).read_text("utf-8").strip()
        except (OSError, ValueError):
            return None

    def find(self, resume: str) -> tuple[Path | None, list[str]]:
        """The checkpoint that `checkpoint.resume` (auto, never or a path) means, and what is odd about the choice, a line each.

        None: start at step 0. A path says how a run directory begins: once there are checkpoints, they win.

        Raises:
            CheckpointError: there are checkpoints but not one that is complete; or a path to one that is not.
            ConfigError: a path that leads to no checkpoint.
        """
        if resume == "never":
            return None, []
        candidates, notes = self.candidates()
        if resume == "auto":
            return (candidates[0] if candidates else None), notes
        if not candidates:
            return find_checkpoint(Path(resume), "checkpoint.resume"), []
        if candidates[0].resolve() != Path(resume).resolve():
            began = f"checkpoint.resume = {resume} says how {self.directory.parent} begins, which has checkpoints of its own by now"
            notes.append(f"{began}: the newest goes on (to begin there again, choose another training.output)")
        return candidates[0], notes

    def candidates(self) -> tuple[list[Path], list[str]]:
        """The complete checkpoints, newest first, and what is odd about the first of them, a line each.

        Raises:
            CheckpointError: there are checkpoints, but not one that is complete.
        """
        complete, damaged = self.survey()
        if not complete:
            if damaged or self.set_aside():
                raise CheckpointError("; ".join([*(problem for _, problem in damaged), f"no good checkpoint in {self.directory}"]))
            return [], []
        paths = [path for path, _ in reversed(complete)]
        notes = [f"{problem}; passed over" for _, problem in damaged]
        if self.latest() != paths[0].name:
            notes.append(f"{self.directory / LATEST} says {self.latest() or 'nothing'}; the newest good checkpoint is {paths[0].name}")
        return paths, notes

    def rescue(self) -> None:
        """Where no complete checkpoint is left, give one its name back: killed between the two moves with which one replaces another of
        the same step, a run leaves both without it. For the run's own start: another process may be at work between the two."""
        if self.newest():
            return
        if path := self.nameless():
            os.rename(path, _final(path))

    def nameless(self) -> Path | None:
        """A complete checkpoint that waits for its name."""
        for ending in (PARTIAL, OBSOLETE):
            for path in self._entries():
                final = _final(path)
                if path.name.endswith(ending) and _NAME.fullmatch(final.name) and not final.exists() and _is_complete(path):
                    return path
        return None

    def _entries(self) -> list[Path]:
        return list(self.directory.iterdir()) if self.directory.is_dir() else []


def _final(path: Path) -> Path:
    """A checkpoint directory's name without what it has while it waits."""
    return path.with_name(path.name.removesuffix(PARTIAL).removesuffix(OBSOLETE))


def _is_complete(path: Path) -> bool:
    try:
        return bool(read_state(path))
    except CheckpointError:
        return False


def find_checkpoint(path: Path, key: str) -> Path:
    """A checkpoint directory, from itself or from its run directory; `key` is what the user gave it as.

    Raises:
        ConfigError: there is none.
        CheckpointError: there is one, and it is not complete.
    """
    return _candidates(path, key)[0]


def from_checkpoint(path: Path, key: str, use: Callable[[Path], T]) -> T:
    """What `use` makes of the checkpoint at `path`, or of a run directory's newest one that proves good as it is read.

    Raises:
        ConfigError, CheckpointError: as `find_checkpoint`.
        DamagedError: the checkpoint, or every one of the run, is damaged.
    """
    candidates = _candidates(path, key)
    for candidate in candidates[:-1]:
        try:
            return use(candidate)
        except DamagedError as error:
            log.warning("%s; taking the checkpoint before it", error)
    return use(candidates[-1])


def _candidates(path: Path, key: str) -> list[Path]:
    """The checkpoints that `path` may mean, the best first."""
    if (path / "checkpoints").is_dir():
        found, notes = Catalogue(path).candidates()
        if not found:
            raise ConfigError(f"{key}: {path} is a run directory that has saved no checkpoint yet; valid is one that has")
        for note in notes:
            log.warning(note)
        return found
    if not (path / STATE).is_file():
        raise ConfigError(f"{key}: {path} is no checkpoint; valid is a run directory or one of its checkpoints/step-*")
    read_state(path)
    return [path]
