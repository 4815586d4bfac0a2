"""Input that can be read only once: standard input, named pipes, process substitution."""

import io
import os
import select
import sys

PATIENCE_SECONDS = 2.0


class Pipe:
    """An open pipe whose beginning may be looked at before it is read. Another process has no use for it: it pickles as None."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._head = file, b""

    def head(self, size: int) -> bytes:
        """The first `size` bytes, or all of them."""
        self._head += self._file.read(max(0, size - len(self._head)))
        return self._head

    def take(self) -> io.BufferedReader:
        """Everything, the beginning too."""
        return io.BufferedReader(_Rejoined(self._head, self._file))

    def __reduce__(self):
        return type(None), ()


class _Rejoined(io.RawIOBase):
    def __init__(self, head: bytes, rest: io.BufferedIOBase):
        self._parts = [io.BytesIO(head), rest]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while self._parts:
            if count := self._parts[0].readinto(buffer):
                return count
            self._parts.pop(0).close()
        return 0


def open_pipe(path: str) -> Pipe:
    """Open a pipe, and say so if nothing comes for two seconds. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)     # which does not wait for a writer
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    if not waiting.poll(PATIENCE_SECONDS * 1000):
        print(f"--input {path}: a pipe that nobody has written to yet; waiting", file=sys.stderr, flush=True)
        waiting.poll()
    os.set_blocking(descriptor, True)
    return Pipe(os.fdopen(descriptor, "rb"))
