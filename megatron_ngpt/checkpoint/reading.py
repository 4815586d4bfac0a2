"""A checkpoint whose reading ends the process that reads it can raise no error: that it was begun is on the disk before."""

import json
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.errors import DamagedError
from megatron_ngpt.foreign import read_json

FILE = "reading.json"
OFTEN = 2  # readings without an end


class Reading:
    """Of the checkpoints of a run directory, by one rank."""

    def __init__(self, output: Path):
        self._path = output / FILE

    def begin(self, checkpoint: Path) -> None:
        """Raises DamagedError if this one's last readings never came to an end."""
        times = self._times(checkpoint)
        if times >= OFTEN:
            raise DamagedError(f"checkpoint {checkpoint}: {times} starts in a row ended while they read it")
        write_text(self._path, json.dumps({"checkpoint": checkpoint.name, "times": times + 1}))

    def end(self) -> None:
        """It came to an end, a good one or one with an error."""
        self._path.unlink(missing_ok=True)

    def _times(self, checkpoint: Path) -> int:
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = read_json(self._path.read_bytes())
            return int(found["times"]) if found["checkpoint"] == checkpoint.name else 0
        return 0
