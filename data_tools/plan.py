"""Unfinished work that survives a kill: what was asked for, how far it got, and who is at it.

`PREFIX.partial/` holds `plan.json` (the arguments), `journal.json` (the position after the last finished shard, replaced whole
each time), the tokens so far, and a lock.
"""

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_ngpt.data.indexed import pair_paths, read_meta
from megatron_ngpt.data.writer import write_text
from megatron_ngpt.errors import ConfigError, DataError


@dataclass
class Journal:
    """How far the work got: the next position in the input, what is written, and what was left out."""

    file: int = 0
    position: int = 0
    lines: int = 0                  # lines of the file before the position
    consumed: int = 0               # bytes of the file on disk before the position
    documents: int = 0
    bin_bytes: int = 0
    text_bytes: int = 0
    empty: int = 0
    malformed: int = 0


class Work:
    """The folder of one run, locked from `open` to the end of the `with` block. `arguments`: what the output depends on.

    Without `keep` the folder goes when the run fails: its input cannot be read again.
    """

    def __init__(self, prefix: str, arguments: dict, keep: bool = True):
        self.prefix = prefix
        self.folder = Path(f"{prefix}.partial")
        self.digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
        self.base = str(self.folder / "tokens")
        self._arguments = arguments
        self._keep, self._entered, self._lock = keep, False, None

    def already_complete(self) -> bool:
        """Whether the dataset is there, made by the same arguments. Raises ConfigError if it was made by others."""
        if not pair_paths(self.prefix)[1].exists():
            return False
        if (read_meta(self.prefix) or {}).get("arguments_sha256") == self.digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            return True
        raise ConfigError(f"--output {self.prefix}: {self.prefix}.idx exists, made from other input or with other options; "
                          "choose another prefix, or remove the dataset first")

    def open(self) -> Journal:
        """Lock the folder and return how far the work got. Raises ConfigError if it is unfinished work of other arguments."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {self.prefix}: {error.strerror}; choose a prefix where you may write") from None
        # A record lock is this process's alone: workers, who are forked, do not keep it when this process is killed.
        self._lock = open(self.folder / "lock", "w")        # noqa: SIM115 (held until `__exit__`)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--output {self.prefix}: another process writes it; wait or choose another prefix") from None
        plan = self.folder / "plan.json"
        if not plan.exists():
            self._entered = True
            write_text(plan, json.dumps({"arguments_sha256": self.digest, **self._arguments}, indent=2))
            return Journal()
        self._check_plan(plan)
        journal = self.folder / "journal.json"
        return Journal(**json.loads(journal.read_text())) if journal.exists() else Journal()

    def _check_plan(self, plan: Path) -> None:
        planned = json.loads(plan.read_text())
        if planned["arguments_sha256"] == self.digest:
            return
        changed = [key for key, value in self._arguments.items() if planned.get(key) != json.loads(json.dumps(value))]
        raise DataError(f"--output {self.prefix}: {self.folder} holds unfinished work with another {' and '.join(changed)}; "
                        "give the arguments of that run to go on with it, or remove the folder to start anew")

    def recorded(self) -> bool:
        """Whether a shard is finished that a re-run would go on from."""
        return (self.folder / "journal.json").exists()

    def record(self, journal: Journal) -> None:
        """Replace the journal; what it counts must be on disk by now."""
        write_text(self.folder / "journal.json", json.dumps(asdict(journal)))

    def recover_renamed(self, target: str, base: str) -> None:
        """Take back tokens that got their final name before the index did, when the run was ended between the two."""
        bin_path, idx_path, _ = pair_paths(target)
        if bin_path.exists() and not idx_path.exists() and not os.path.exists(f"{base}.bin.tmp"):
            os.replace(bin_path, f"{base}.bin.tmp")

    def remove(self) -> None:
        """Remove the folder: the work is done."""
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        if error and self._entered and not self._keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock:
            self._lock.close()
