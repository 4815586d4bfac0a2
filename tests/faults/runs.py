"""Runs that something happens to: their options, their lines, and the moment to strike."""

import time
from pathlib import Path

from megatron_ngpt.monitor.metrics import read_metrics
from tests.distributed.ranks import Run

EVERY = {"checkpoint.every": 5}
OF_MACHINES = ("seconds", "_per_second", "utilisation", "memory")  # in the names of values that no two runs have in common


def options(keys: dict) -> list[str]:
    return [f"--{key}={value}" for key, value in (EVERY | keys).items()]


def lines(output: Path) -> list[dict]:
    """metrics.jsonl without what differs between two machines, tells of starts before, or of what the run has been asked for."""
    left_out = (*OF_MACHINES, "restarts", "percent_done")
    return [{key: value for key, value in line.items() if not any(part in key for part in left_out)} for line in read_metrics(output)]


def wait_for_step(run: Run, step: int, seconds: float = 100) -> None:
    """Until metrics.jsonl has the line of a step."""
    path, deadline = run.output / "metrics.jsonl", time.monotonic() + seconds
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert time.monotonic() < deadline and any(p.is_alive() for p in run.processes), run.story()
        time.sleep(0.005)


def checkpoints(output: Path) -> list[str]:
    """Everything in the run's `checkpoints/`."""
    return sorted(path.name for path in (output / "checkpoints").iterdir())
