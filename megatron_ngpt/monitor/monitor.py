"""The one thing the training loop talks to: it tells each value once, and the monitor writes it wherever it belongs."""

import logging
from pathlib import Path
from typing import TextIO

from megatron_ngpt.monitor.metrics import MetricsLog, metrics_file
from megatron_ngpt.monitor.progress import ProgressView
from megatron_ngpt.monitor.tensorboard import TensorBoardLog

log = logging.getLogger(__name__)

TAGS = {  # in TensorBoard
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "tokens_per_second": "throughput/tokens_per_second",
    "tflops_per_second": "throughput/tflops",
    "max_norm_error": "sphere/max_norm_error",
    "valid_loss": "valid/loss",
}


class Monitor:
    """Metrics, TensorBoard and progress of a run in `output` of `steps` steps that continues after `start_step`.

    Rank 0 writes; on any other rank every call returns at once. `console` is the stream that a person reads.
    """

    def __init__(self, output: Path, steps: int, start_step: int, rank: int, console: TextIO):
        self._writes = rank == 0
        if not self._writes:
            return
        self._metrics = MetricsLog(metrics_file(output))
        self._metrics.cut_after(start_step)
        self._told = False
        self._board = TensorBoardLog(output / "tensorboard", start_step)
        self._progress = ProgressView(steps, start_step, console)

    def scalars(self, step: int, values: dict[str, float | dict | None]) -> None:
        """The values known after a step (1-based), by the names that `metrics.jsonl` has for them (`monitor.metrics` says what they are);
        a new value needs no more than its name here, and a tag in `TAGS` to be seen in TensorBoard."""
        if not self._writes:
            return
        self._metrics.append({"step": step} | values)
        self._tell_problem()
        self._board.scalars(step, tagged(values))
        if "loss" in values:
            self._progress.update(step, values)
        if "valid_loss" in values:
            self.message(f"step {step} · validation loss {values['valid_loss']:.4f}")

    def message(self, text: str) -> None:
        """Tell the person, and the log, something in a line."""
        if not self._writes:
            return
        self._progress.message(text)
        log.info(text)

    def sync(self) -> None:
        """Put `metrics.jsonl` on the disk."""
        if self._writes:
            self._metrics.sync()

    def checkpoint(self, path: Path, step: int, seconds: float, stall: float) -> None:
        """The checkpoint of `step` at `path` is complete: seconds that it took, and that training waited for it."""
        if self._writes:
            log.info("checkpoint %s complete after %.1f s; training waited %.2f s", path, seconds, stall)
            self._board.scalars(step, {"checkpoint/seconds": seconds, "checkpoint/stall_seconds": stall})

    def close(self) -> None:
        """Write out everything; the run is over or has failed."""
        if not self._writes:
            return
        self._metrics.close()
        self._tell_problem()
        self._progress.close()
        self._board.close()

    def _tell_problem(self) -> None:
        """Once, when a problem with `metrics.jsonl` begins."""
        if self._metrics.problem and not self._told:
            self.message(f"warning: {self._metrics.problem}")
        self._told = self._metrics.problem is not None


def tagged(values: dict[str, float | dict | None]) -> dict[str, float]:
    """Those of the values that have a tag and are known, by tag; validation losses by name where there are several."""
    found = {TAGS[name]: value for name, value in values.items() if name in TAGS and value is not None}
    by_name = values.get("valid") or {}
    return found | ({f"valid/loss/{name}": loss for name, loss in by_name.items()} if len(by_name) > 1 else {})
