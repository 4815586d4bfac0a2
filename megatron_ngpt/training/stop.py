"""A clean stop, however it was asked for: a signal to any rank, or the end of the launcher that started it. And the signal that asks for a
profile.

A thread takes the signals, so that a person is answered at once, whatever the rank computes. All ranks agree on where they stop: after a
step, or where steps are long between two micro-batches, when no weight has moved yet.
"""

import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_ngpt.checkpoint.ownership import Ownership
from megatron_ngpt.errors import NgptError
from megatron_ngpt.training.launcher import launchers, running
from megatron_ngpt.watchdog.rank import NOBODY, Unwatched

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU, signal.SIGHUP]
FOR_GOOD = [signal.SIGINT, signal.SIGHUP]  # asked by a person, who is there; the others ask for room, and the run is to go on later
PROFILE = signal.SIGUSR2  # asks for a profile of the next steps instead
WATCH = 0.5  # seconds between two looks at the launcher
WITHIN = 1.0  # seconds of micro-batches after which ranks ask each other: less often than this they would see a stop late


class Stopped(Exception):
    """The ranks have agreed to stop within a step, whose gradients are dropped."""


class StopRequest:
    """From now on this rank's signals, and its launcher's end, ask for a stop; a second Ctrl-C is not waited for.

    Args:
        say: tells a person a line, at once and from a thread (rank 0).
        ownership: of the run directory, on rank 0.
        watch: is told of steps and micro-batches.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None, ownership: Ownership | None = None, watch: Unwatched = NOBODY):
        self.asked: str | None = None
        self._profile_asked, self._profile_by = False, 0  # on this rank; by which rank, counted from 1, as all agreed
        self._interrupted, self._for_good, self._level = False, False, 0
        self._say, self._ownership, self._watching = say, ownership, watch
        self._group = dist.new_group(backend="gloo")  # hosts among themselves: no device is waited for
        self._step, self._stride, self._began, self._count = 0, 1, time.monotonic(), 0
        self._launchers, self._over = launchers(), threading.Event()
        self._signals, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*SIGNALS, PROFILE):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means to go on
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def begin(self, step: int) -> None:
        """A step begins, of which micro-batches are counted by `between`."""
        self._step, self._began, self._count = step, time.monotonic(), 1
        self._watching.step(step)

    def between(self) -> None:
        """Between two micro-batches (collective now and then). Raises Stopped on every rank, or on none."""
        self._watching.beat()
        if self._count % self._stride == 0 and self.agreed():
            raise Stopped
        self._count += 1

    def agreed(self) -> bool:
        """Whether any rank was asked to stop (collective over the world: the same answer, at the same step, on every rank).

        Raises:
            NgptError: on every rank; rank 0 has lost the run directory to another run.
        """
        seconds = (time.monotonic() - self._began) / max(1, self._count)
        lost = self._ownership is not None and self._ownership.lost()
        profiled, self._profile_asked = self._profile_asked * (1 + dist.get_rank()), False
        level = 0.0 if self.asked is None else 2.0 if self._for_good else 1.0
        told = torch.tensor([level, float(lost), seconds, profiled], dtype=torch.float64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        self._level, lost, seconds, profiled = told.tolist()
        self._profile_by = int(profiled) or self._profile_by
        if lost:
            if self._ownership:
                self._ownership.check()
            raise NgptError("the run directory is used by another run now; stopped without writing there")
        self._stride = max(1, math.ceil(WITHIN / max(seconds, 1e-9)))
        return bool(self._level)

    @property
    def status(self) -> int:
        """What a run that stopped as it was asked to ends with (the same on every rank): 0 where a person stopped it, else EX_TEMPFAIL, on
        which whoever started it starts it again."""
        return 0 if self._level == 2 else os.EX_TEMPFAIL

    def profile_asked_by(self) -> int | None:
        """The rank that was asked for a profile since the last call (the same on every rank); None: no rank was."""
        by, self._profile_by = self._profile_by, 0
        return by - 1 if by else None

    def close(self) -> None:
        """Signals are not waited for any more."""
        self._over.set()

    def _watch(self) -> None:
        """Take signals as they come, and look after the launcher."""
        while not self._over.is_set():
            if select.select([self._signals], [], [], WATCH)[0]:
                for number in os.read(self._signals, 64):
                    if number == PROFILE:
                        self._profile_asked = True
                    elif number in SIGNALS:
                        self._take(signal.Signals(number))
            if self.asked is None and any(not running(launcher) for launcher in self._launchers):
                self._ask("its launcher is gone")

    def _take(self, number: signal.Signals) -> None:
        self._for_good |= number in FOR_GOOD
        if number != signal.SIGINT:
            self._ask(number.name)
        elif not self._interrupted:
            self._interrupted = True
            self._ask("Ctrl-C", "; again to stop now")
        else:
            self._say("stopped at once: what was trained since the last checkpoint is lost")
            if self._ownership:
                self._ownership.release()
            self._watching.leave()
            os._exit(128 + number)

    def _ask(self, why: str, again: str = "") -> None:
        if self.asked and not again:
            return
        self.asked = self.asked or why
        self._say(f"{why}: finishing step {self._step}, then a checkpoint{again}")
