"""What a person sees while long work goes on: a bar on a terminal; of a run, a plain line now and then anywhere else."""

import time
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

SECONDS_BETWEEN_LINES = 10.0  # in a file or a CI log


def byte_progress(transient: bool = False) -> Progress:
    """A bar on standard error that counts bytes, with speed and time left; `transient`: it goes when the work is done."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=transient)


class Pace:
    """How long a run of `steps` steps will still take, by the mean time of a step since the first that was told, which may have compiled
    kernels; evaluations and checkpoints included."""

    def __init__(self, steps: int):
        self._steps = steps
        self._began: tuple[int, float] | None = None

    def seconds_left(self, step: int) -> float | None:
        """After `step`, which is over now; None where that is not known yet."""
        now = time.monotonic()
        self._began = self._began or (step, now)
        first, since = self._began
        if step in (first, self._steps):
            return 0.0 if step == self._steps else None
        return (now - since) / (step - first) * (self._steps - step)


class _Terminal(Console):
    """What is to be shown where nobody reads any more is lost, and ends nothing; rich itself would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class ProgressView:
    """Shows step, loss, speed and time left of a run of `steps` steps that continues after `start_step`. A terminal or a pipe may go away
    meanwhile."""

    def __init__(self, steps: int, start_step: int, stream: TextIO):
        self._steps = steps
        self._console = _Terminal(file=stream, highlight=False, soft_wrap=True)
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("train", total=steps, completed=start_step, text="")
            self._bar.start()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show the state after `step`: the values of its line in the metrics."""
        now = time.monotonic()
        speed = f"{values['tokens_per_second']:,.0f} tokens/s · {values['tflops_per_second']:.3g} TFLOP/s"
        text = f"loss {values['loss']:.4f} · {speed} · {_time_left(values.get('seconds_left'))}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif step == self._steps or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.message(f"step {step}/{self._steps} · {text}")

    def message(self, text: str) -> None:
        """A line above the bar."""
        with suppress(OSError):
            self._console.print(text, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        with suppress(OSError):
            if self._bar:
                self._bar.stop()


def _time_left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
