"""The checkpoints of a run directory: their names, which is newest, which stay.

    OUTPUT/checkpoints/step-00000010/     one checkpoint, complete as soon as it has this name
    OUTPUT/checkpoints/latest             the name of the one saved last, for people and scripts; nothing here relies on it
"""

import re
from pathlib import Path

import torch

from megatron_ngpt.checkpoint.dcp import save
from megatron_ngpt.checkpoint.files import OBSOLETE, PARTIAL, read_state, remove, retire, write_text
from megatron_ngpt.checkpoint.together import on_first_rank
from megatron_ngpt.errors import CheckpointError, ConfigError
from megatron_ngpt.parallel.shards import Shard

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointStore:
    """Saves checkpoints of a run and finds them again.

    Args:
        output: the run directory, on a file system that all ranks share.
        keep: how many of the newest stay.
        keep_every: those whose step is a multiple of this stay for good; 0 = none.

    Newest means saved last: a run that went back to an earlier step and overtook it has left higher steps behind. Each
    checkpoint's state carries a `serial` for that, one more than the highest before it.
    """

    def __init__(self, output: Path, keep: int, keep_every: int):
        self.directory = Path(output) / "checkpoints"
        self.keep, self.keep_every = keep, keep_every

    def save(self, step: int, shards: dict[str, Shard], base_optimizer: torch.optim.Optimizer | None, state: dict) -> Path:
        """Write the checkpoint of `step`, then remove those that need not stay (collective); returns its directory.

        Raises:
            CheckpointError: on every rank; earlier checkpoints are as they were.
        """
        path = self.directory / f"step-{step:08d}"
        numbered = {**state, "step": step}
        on_first_rank(lambda: numbered.update(serial=self._next_serial()), f"{self.directory} could not be read")
        save(path, shards, base_optimizer, numbered)
        on_first_rank(lambda: self._tidy(path.name), f"checkpoint {path} is complete, but {self.directory} could not be tidied")
        return path

    def newest(self) -> Path | None:
        """The checkpoint saved last among the complete ones."""
        complete = self._complete()
        return complete[-1][0] if complete else None

    def find(self, resume: str) -> Path | None:
        """The checkpoint that `checkpoint.resume` (auto, never or a path) means; None: start at step 0.

        Raises:
            CheckpointError: `auto`, and there are checkpoints but not one that is complete.
            ConfigError: a path that leads to no checkpoint.
        """
        if resume == "never":
            return None
        if resume != "auto":
            return find_checkpoint(Path(resume), "checkpoint.resume")
        newest = self.newest()
        if newest is None and (damaged := self._named()):
            _explain_damage(damaged[-1])
        return newest

    def _named(self) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(p for p in self.directory.iterdir() if _NAME.fullmatch(p.name) and p.is_dir())

    def _complete(self) -> list[tuple[Path, dict]]:
        """Complete checkpoints with their states, in the order they were saved."""
        found = []
        for path in self._named():
            try:
                found.append((path, read_state(path)))
            except CheckpointError:
                continue
        return sorted(found, key=lambda entry: (entry[1].get("serial", 0), entry[1]["step"]))

    def _next_serial(self) -> int:
        return 1 + max((state.get("serial", 0) for _, state in self._complete()), default=0)

    def _tidy(self, latest: str) -> None:
        write_text(self.directory / "latest", latest + "\n")
        complete = self._complete()
        for path, state in complete[: -self.keep]:
            if not (self.keep_every and state["step"] % self.keep_every == 0):
                retire(path)
        for leftover in self.directory.iterdir():
            if leftover.name.endswith((PARTIAL, OBSOLETE)):
                remove(leftover)


def find_checkpoint(path: Path, key: str) -> Path:
    """A checkpoint directory, from itself or from its run directory; `key` is what the user gave it as.

    Raises:
        ConfigError: there is none.
        CheckpointError: there is one, and it is not complete.
    """
    if (path / "checkpoints").is_dir():
        found = CheckpointStore(path, 1, 0).find("auto")
        if found is None:
            raise ConfigError(f"{key}: {path} is a run directory that has saved no checkpoint yet; valid is one that has")
        return found
    if not (path / "state.json").is_file():
        raise ConfigError(f"{key}: {path} is no checkpoint; valid is a run directory or one of its checkpoints/step-*")
    read_state(path)
    return path


def _explain_damage(path: Path) -> None:
    """Raise what is wrong with a checkpoint where no other can be used."""
    try:
        read_state(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; there is no complete checkpoint in {path.parent}") from None
