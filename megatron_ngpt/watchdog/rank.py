"""The rank's side: it starts its watchdog, tells it how far it is, and leaves it."""

import faulthandler
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import megatron_ngpt
from megatron_ngpt.errors import NgptError
from megatron_ngpt.watchdog.channel import Channel
from megatron_ngpt.watchdog.page import Page
from megatron_ngpt.watchdog.sections import END, START, Section, limit
from megatron_ngpt.watchdog.settings import Settings

DUMP = signal.SIGRTMIN + 1  # on which this process writes the stacks of all its threads to its log, whatever it does
PERIOD = 30.0  # seconds over which the ranks' work is compared
REPORTS = 1000.0  # that rank 0's watchdog reads in a second at most
TELLING = 15.0  # seconds that a rank waits at most while its error is told


class Unwatched:
    """Takes what a rank tells of itself, and does nothing with it."""

    def enter(self, section: Section) -> None:
        """The rank gets into a section."""

    def beat(self) -> None:
        """It gets further, at a place where every rank comes by as often as this one."""

    def step(self, step: int) -> None:
        """A step begins."""

    def stepped(self) -> None:
        """A step of this start is over: whatever is compiled is."""

    def worked(self, seconds: float) -> None:
        """A step was measured, in which this rank computed so long."""

    def leave(self) -> None:
        """The rank ends on its own account."""


NOBODY = Unwatched()


class Watch(Unwatched):
    """A watchdog beside this rank, from its construction to `leave`.

    Args:
        keys: the recipe's `watchdog`.
        log: this rank's log, an open file: stacks go there.
        console: what a person reads, as a file with a descriptor.
        flight: the pipe at which torch's flight recorder waits, if there is one.
    """

    def __init__(
        self, keys: Mapping[str, int], rank: int, local_rank: int, world: int, output: Path, log: Path, console: TextIO,
        flight: str | None = None,
    ):  # fmt: skip
        self._keys, self._rank, self._world, self._first = dict(keys), rank, world, True
        self._page, self._busy, self._measured = Page(), 0.0, 0
        self._log = log.open("ab", buffering=0)
        faulthandler.register(DUMP, file=self._log, all_threads=True)
        faulthandler.enable(file=self._log)
        self.enter(START)
        ours, theirs = socket.socketpair()
        self._control, host = Channel(ours), socket.gethostname()
        settings = Settings(
            process=os.getpid(), thread=threading.main_thread().ident, page=self._page.descriptor, control=theirs.fileno(),
            console=console.fileno(), rank=rank, local_rank=local_rank, host=host, log=str(log), output=str(output), keys=self._keys,
            dump=DUMP, flight=flight, interval=max(1.0, world / REPORTS), period=PERIOD,
        )  # fmt: skip
        root = str(Path(megatron_ngpt.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "megatron_ngpt.watchdog.process", settings.write()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
            pass_fds=(settings.page, settings.control, settings.console),
        )  # fmt: skip
        theirs.close()

    def enter(self, section: Section) -> None:
        """The rank gets into a section."""
        self._page.enter(section, limit(section, self._keys, self._first))

    def beat(self) -> None:
        """It gets further, at a place where every rank comes by as often as this one."""
        self._page.beat()

    def step(self, step: int) -> None:
        """A step begins."""
        self._page.step(step)

    def stepped(self) -> None:
        """A step of this start is over: whatever is compiled is."""
        self._first = False

    def worked(self, seconds: float) -> None:
        """A step was measured, in which this rank computed so long."""
        self._busy, self._measured = self._busy + seconds, self._measured + 1
        self._page.busy(self._busy, self._measured)

    def listen(self) -> dict:
        """Where rank 0's watchdog is to be called, which is told to every rank's `join`. Raises NgptError if it gives no answer."""
        token = secrets.token_hex(16)
        self._control.say(listen={"token": token, "world": self._world})
        if select.select([self._control], [], [], TELLING)[0]:
            for words in self._control.heard():
                return {"host": os.environ["MASTER_ADDR"], "port": words["port"], "token": token}
        raise NgptError("the watchdog of rank 0 does not answer; its log says why")

    def join(self, address: dict | None, stage: int) -> None:
        """Call rank 0's watchdog from this rank's; `stage` is this rank's of the pipeline."""
        self._control.say(stage=stage)
        if self._rank and address:
            self._control.say(join=address)

    def failed(self, line: str) -> None:
        """This rank ends with an error, which the first of them to fail has told on the terminal when this returns."""
        self.enter(END)
        self._control.say(failed=line)
        try:
            self._process.wait(TELLING)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def leave(self) -> None:
        """The rank ends on its own account."""
        self._page.leave()
        self._control.close()
