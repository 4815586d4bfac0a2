"""The one thing the training loop talks to: it tells each value once, and the monitor writes it wherever it belongs."""

import logging
from pathlib import Path
from typing import TextIO

from megatron_ngpt.monitor.metrics import MetricsLog
from megatron_ngpt.monitor.progress import ProgressView
from megatron_ngpt.monitor.tensorboard import TensorBoardLog

log = logging.getLogger(__name__)


class Monitor:
    """Metrics, TensorBoard and progress of a run in `output` of `steps` steps that continues after `start_step`.

    Rank 0 writes; on any other rank every call returns at once. `console` is the stream that a person reads.
    """

    def __init__(self, output: Path, steps: int, start_step: int, rank: int, console: TextIO):
        self._writes = rank == 0
        if not self._writes:
            return
        self._metrics = MetricsLog(output / "metrics.jsonl")
        self._metrics.cut_after(start_step)
        self._told = False
        self._board = TensorBoardLog(output / "tensorboard", start_step)
        self._progress = ProgressView(steps, start_step, console)

    def training(
        self,
        step: int,
        tokens: int,
        loss: float,
        grad_norm: float,
        lr: float,
        step_seconds: float,
        tokens_per_second: float,
        tflops_per_second: float,
        max_norm_error: float | None,
    ) -> None:
        """The values of a training step (1-based).

        `tokens`: seen after the step; `loss`: nats a token, mean over the global batch before the update; `grad_norm`: before
        clipping; `lr`: what the update used; `tflops_per_second`: model FLOPs, a device; `max_norm_error`: largest | ‖w‖ − 1 |
        after rescaling, None where the model has no spherical weights.
        """
        if not self._writes:
            return
        self._append(
            {
                "step": step,
                "tokens": tokens,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": lr,
                "step_seconds": step_seconds,
                "tokens_per_second": tokens_per_second,
                "tflops_per_second": tflops_per_second,
                "max_norm_error": max_norm_error,
            }
        )
        self._board.scalars(
            step,
            {
                "train/loss": loss,
                "train/grad_norm": grad_norm,
                "train/lr": lr,
                "throughput/tokens_per_second": tokens_per_second,
                "throughput/tflops": tflops_per_second,
                "sphere/max_norm_error": max_norm_error,
            },
        )
        self._progress.update(step, loss, tokens_per_second, tflops_per_second)

    def validation(self, step: int, valid_loss: float, by_name: dict[str, float]) -> None:
        """The validation loss after `step`, nats a token: the mean over all datasets, and each one's own."""
        if not self._writes:
            return
        self._append({"step": step, "valid_loss": valid_loss, "valid": by_name})
        names = {f"valid/loss/{name}": loss for name, loss in by_name.items()} if len(by_name) > 1 else {}
        self._board.scalars(step, {"valid/loss": valid_loss} | names)
        self.message(f"step {step} · validation loss {valid_loss:.4f}")

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

    def _append(self, line: dict) -> None:
        self._metrics.append(line)
        self._tell_problem()

    def _tell_problem(self) -> None:
        """Once, when a problem with `metrics.jsonl` begins."""
        if self._metrics.problem and not self._told:
            self.message(f"warning: {self._metrics.problem}")
        self._told = self._metrics.problem is not None
