"""The rank as its own watchdog sees it: whether it lives, how long it has not got further, where it is, and its end."""

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.watchdog.page import Page
from megatron_ngpt.watchdog.settings import Settings
from megatron_ngpt.watchdog.stacks import Place, read_place

MEBIBYTE = 1 << 20


class Subject:
    """The process that a watchdog is for."""

    def __init__(self, settings: Settings):
        self._settings, self._process = settings, settings.process
        self._page = Page(settings.page)
        self.descriptor = os.pidfd_open(self._process)  # readable once the process has ended
        self.state = self._page.read()
        self._changed, self._files, self._dumped = 0.0, 0, 0

    def look(self, now: float) -> None:
        """Read the page at the watchdog's own time `now`."""
        state = self._page.read()
        files = self._bytes_of_files() if state.section.files else 0
        moved = files - self._files > MEBIBYTE
        if moved or state.beats != self.state.beats:
            self._changed, self._files = now, files
        self.state = state

    def age(self, now: float) -> float:
        """Seconds in which it has not got further."""
        return now - self._changed

    def ended(self) -> str | None:
        """How its process has ended, in words; None while it lives."""
        if not select.select([self.descriptor], [], [], 0)[0]:
            return None
        try:  # what its parent has not fetched yet
            status = os.waitstatus_to_exitcode(int(self._stat()[49]))
        except (OSError, IndexError, ValueError):
            return "has ended"
        return f"was ended by {_signal_name(-status)}" if status < 0 else f"has ended with status {status}"

    def letter(self) -> str:
        """The kernel's letter for what it does (R, S, D: runs, sleeps, waits for a device; T, t: stopped); empty where it is unknown."""
        try:
            return self._stat()[0]
        except (OSError, IndexError):
            return ""

    def dump(self) -> None:
        """Ask it for its stacks, and torch's flight recorder for its records."""
        self._dumped = self._log_size()
        with suppress(OSError):
            os.kill(self._process, self._settings.dump)
        if self._settings.flight:
            with suppress(OSError):
                pipe = os.open(self._settings.flight, os.O_WRONLY | os.O_NONBLOCK)
                os.write(pipe, b"1")
                os.close(pipe)

    def place(self) -> Place | None:
        """What the stacks say that it was asked for; None as long as they are not whole."""
        try:
            with open(self._settings.log, "rb") as file:
                file.seek(self._dumped)
                return read_place(file.read().decode("utf-8", "replace"), self._settings.thread)
        except OSError:
            return None

    def note(self, line: str) -> None:
        """Put a line into its log."""
        with suppress(OSError), open(self._settings.log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} watchdog: {line}\n")

    def kill(self) -> None:
        """End it, whatever it does."""
        with suppress(OSError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def _stat(self) -> list[str]:
        return Path(f"/proc/{self._process}/stat").read_text().rpartition(")")[2].split()

    def _log_size(self) -> int:
        try:
            return os.path.getsize(self._settings.log)
        except OSError:
            return 0

    def _bytes_of_files(self) -> int:
        """That it has read and written."""
        try:
            lines = dict(line.split(": ") for line in Path(f"/proc/{self._process}/io").read_text().splitlines())
            return sum(int(lines[name]) for name in ("rchar", "wchar", "read_bytes"))
        except (OSError, ValueError, KeyError):
            return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
