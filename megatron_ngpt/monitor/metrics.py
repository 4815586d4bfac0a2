"""`metrics.jsonl`: one JSON object a line, in the order of the steps, readable while the run goes on.

Every line has `step` (1-based); `table.py` says what else there is.
"""

import errno
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from megatron_ngpt.foreign import read_json


def metrics_file(run: Path) -> Path:
    """Where a run directory has its metrics."""
    return run / "metrics.jsonl"


def read_metrics(run: Path, key: str | None = None) -> list[dict]:
    """The lines of a run directory's metrics in order; with a `key`, those that have a value for it (`loss`: training, `valid_loss`:
    validation). A line that a running writer has not finished is left out. Raises OSError where there is no such file."""
    return [line for line in read_lines(metrics_file(run)) if key is None or line.get(key) is not None]


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a file of JSON objects. Raises OSError."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            found.append(read_json(text))
    return [line for line in found if isinstance(line, dict)]


class MetricsLog:
    """Appends JSON lines to `path`; every line is on disk for other readers when `append` returns.

    Where the disk is full, lines wait in memory for the next one; `problem` then says why, else it is None.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None
        self._waiting = b""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def append(self, line: dict) -> None:
        """Write `line`; numbers that are not finite become null, since JSON has no word for them."""
        self._waiting += (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        self._write()

    def sync(self) -> None:
        """Put the file on the disk, for a checkpoint that stands for what is in it."""
        self._write()
        if self.problem is None:
            os.fsync(self._file.fileno())

    def cut_after(self, step: int) -> None:
        """Remove lines of steps after `step` and what a kill left unfinished, so that a resumed run can go on behind them."""
        self._file.close()
        kept = [line for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines() if _belongs(line, step)]
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        """Close the file."""
        self._write()
        self._file.close()

    def _write(self) -> None:
        try:
            append_whole(self._file, self._waiting)
            self._waiting, self.problem = b"", None
        except OSError as error:
            self.problem = f"{self.path} cannot be written: {error.strerror}; lines wait until it can"


def append_whole(file: BinaryIO, content: bytes) -> None:
    """Add to an unbuffered file all of `content` or, so that no line is torn, nothing. Raises OSError where the disk is full."""
    whole = file.seek(0, os.SEEK_END)
    try:
        if file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        file.truncate(whole)
        raise


def _belongs(text: str, step: int) -> bool:
    """Whether `text` is a whole line of `step` or before."""
    try:
        return read_json(text)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False


def _finite(value):
    """`value` with NaN and infinities replaced by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
