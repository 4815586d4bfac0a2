"""`events.jsonl`: what happened to a run, over all its starts, one JSON object a line. Nothing of it is cut when a run goes on.

Every line has `time` (seconds since 1970), `event`, `step` (the last whole one by then), and what `KINDS` says of the event. A start
that no `end` follows was ended from outside: killed, or its machine was.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.monitor.metrics import MetricsLog, read_lines

KINDS = {
    "start": "resumed_from (a checkpoint; null: step 0), code, ranks (and hosts), layout, notes (what the recipe changes, say)",
    "checkpoint": "path, seconds (from start to end), stall_seconds (that training waited)",
    "checkpoint_failed": "error",
    "veto": "why, batch and rows (of its samples), command (that shows them), repeated (whether the same rows gave the same again;"
    " null: not tried); step is the one that was vetoed",
    "rollback": "checkpoint, vetoed (first and last step), skipped (their batches, which no step reads from now on)",
    "watchdog": "found (the line with which every rank was ended)",
    "straggler": "ranks, host, found (the line about them)",
    "stop": "asked (the signal, or who is gone; null where another rank was asked)",
    "end": "outcome (finished, stopped or failed), error",
}


def events_file(run: Path) -> Path:
    """Where a run directory has its events."""
    return run / "events.jsonl"


def read_events(run: Path) -> list[dict]:
    """The events of a run directory in order; none where there is no such file."""
    path = events_file(run)
    return [line for line in read_lines(path) if "event" in line] if path.exists() else []


class EventLog:
    """Appends to the events of a run; each is on the disk when `append` returns, unless that is full: then it waits for the next."""

    def __init__(self, output: Path):
        path = events_file(output)
        if path.exists():
            _mend(path)
        self._lines = MetricsLog(path)

    def append(self, event: str, step: int, **details) -> None:
        """Write one of `KINDS`."""
        if event not in KINDS:
            raise ValueError(f"{event}: no event of a run; choose from {', '.join(KINDS)}")
        self._lines.append({"time": round(time.time(), 3), "event": event, "step": step, **details})
        with suppress(OSError):
            self._lines.sync()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def _mend(path: Path) -> None:
    """Cut off what a kill left of a last line."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
