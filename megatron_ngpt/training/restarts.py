"""Starts that no person made: how many there were without a new checkpoint in between, so that nothing is started again for ever."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.foreign import read_json

COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "NGPT_RESTART")  # of torchrun, Slurm's requeue, a loop around a launcher
FILE = "restarts.json"
LIMIT = 5  # restarts without a new checkpoint
PATIENCE = 120.0  # seconds in which ranks that a launcher left behind write their last checkpoint
T = TypeVar("T")


def restart(environment: Mapping[str, str]) -> str:
    """What tells this restart from others, the same on every rank; empty for a start that a person made."""
    counts = [environment.get(name, "0") for name in COUNTS]
    return ".".join(counts) if any(count.isdigit() and int(count) for count in counts) else ""


def count_restarts(output: Path, environment: Mapping[str, str], writes: bool) -> None:
    """Note this start, on the rank that `writes`; every rank comes to the same end.

    Raises ConfigError where it is one restart too many since the newest checkpoint.
    """
    this, path = restart(environment), output / FILE
    if not this:
        if writes:
            path.unlink(missing_ok=True)
        return
    newest, (before, starts) = Catalogue(output).latest() or "", _read(path)
    others = [start for start in starts if start != this] if newest <= before else []
    if len(others) >= LIMIT:
        raise ConfigError(
            f"training.output = {output}: started again {len(others)} times without a checkpoint newer than {before or 'none at all'}; "
            f"{output}/events.jsonl and logs/ say why it ended; started by hand it counts anew"
        )
    if writes:
        write_text(path, json.dumps({"checkpoint": newest, "starts": [*others, this]}))


def patiently(take: Callable[[], T], environment: Mapping[str, str]) -> T:
    """What `take` gives; a restart waits for the run before it, whose directory may still be in use. Raises ConfigError as `take`."""
    until = time.monotonic() + (PATIENCE if restart(environment) else 0.0)
    while True:
        try:
            return take()
        except ConfigError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.5)


def _read(path: Path) -> tuple[str, list[str]]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = read_json(path.read_bytes())
        return str(found["checkpoint"]), [str(start) for start in found["starts"]]
    return "", []
