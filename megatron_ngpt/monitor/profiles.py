"""Profiles of some steps: a trace of all that ran, a table of what took longest, and on a GPU what its memory was used for."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_ngpt.config.recipe import Profile

log = logging.getLogger(__name__)

ASKED_STEPS = 3  # of a profile that a signal asks for
ROWS = 50  # of the table
MEMORY_EVENTS = 200_000  # of a memory snapshot


class Window(NamedTuple):
    """Steps to profile, and the ranks that do."""

    first: int
    last: int
    ranks: list[int]


class Profiles:
    """The profiles of this rank, in `folder`.

    The loop calls `begin` before each step and `end` after it. What can't be profiled or written is told, and harms nobody.

    Args:
        wanted: the recipe's section: steps, and ranks.
        tell: tells a person a line, on rank 0.
    """

    def __init__(self, folder: Path, wanted: Profile, rank: int, device: torch.device, tell: Callable[[str], None]):
        self._folder, self._rank, self._device, self._tell = folder, rank, device, tell
        self._always = wanted.ranks
        self._windows = [Window(*wanted.steps, wanted.ranks)] if wanted.steps else []
        self._profile: profile | None = None
        self._range: record_function | None = None

    def begin(self, step: int) -> None:
        """A step begins."""
        window = self._at(step)
        if window and self._rank in window.ranks:
            self._try(lambda: self._begin(step))

    def end(self, step: int, asked_by: int | None) -> bool:
        """A step is over; returns whether a profile was written, which took its time. `asked_by`: on this rank, and on those of the recipe,
        the next steps are wanted now (the same on every rank)."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        writes = self._profile is not None and self._at(step + 1) is None
        if writes:
            self._try(lambda: self._write(step))
        if asked_by is not None and self._at(step + 1) is None:
            window = Window(step + 1, step + ASKED_STEPS, sorted({*self._always, asked_by}))
            self._windows.append(window)
            self._tell(f"profile of steps {window.first} to {window.last} on ranks {window.ranks}: will be in {self._folder}")
        return writes

    def close(self, step: int) -> None:
        """The run is over, `step` was its last; a profile under way is written as far as it got."""
        self._windows.clear()
        self.end(step, None)

    def _at(self, step: int) -> "Window | None":
        return next((window for window in self._windows if window.first <= step <= window.last), None)

    def _begin(self, step: int) -> None:
        if self._profile is None:
            self._first = step
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
            started = profile(activities=activities, record_shapes=True, profile_memory=True)
            started.start()
            self._profile = started
        self._range = record_function(f"step {step}")
        self._range.__enter__()

    def _write(self, step: int) -> None:
        """Stop, and write the files."""
        done, self._profile = self._profile, None
        done.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self._first:08}-{step:08}-rank-{self._rank:05}"
        if self._device.type == "cuda":
            try:
                torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}.memory.pickle"))
            finally:
                torch.cuda.memory._record_memory_history(enabled=None)
        done.export_chrome_trace(str(self._folder / f"{name}.trace.json.gz"))
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=80)
        (self._folder / f"{name}.txt").write_text(table + "\n", encoding="utf-8")
        self._tell(f"profile of steps {self._first} to {step} written: {self._folder / name}.trace.json.gz")

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._profile = self._range = None
            self._windows.clear()
            log.warning("no profile", exc_info=True)
            first = str(error).partition("\n")[0] or type(error).__name__
            self._tell(f"warning: no profile on rank {self._rank}: {first}; training goes on")
