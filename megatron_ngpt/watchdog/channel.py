"""JSON lines between two watchdogs, over a socket that neither ever waits for."""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress

FULL = 1 << 16  # bytes that wait for a cable; what is said beyond that is left out
PIECE = 1 << 16


class Channel:
    """One end of a connection.

    Attributes:
        open: the other end is there, as far as its kernel has told.
    """

    def __init__(self, connection: socket.socket):
        self._socket, self.open = connection, True
        self._socket.setblocking(False)
        self._out, self._in = b"", b""

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def say(self, **words) -> None:
        """Send an object, or nothing if the other end takes nothing any more."""
        if len(self._out) < FULL:
            self._out += json.dumps(words).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Send what waits, as far as it goes; returns whether all is gone."""
        try:
            while self._out and self.open:
                self._out = self._out[self._socket.send(self._out) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
        return not self._out

    def heard(self) -> Iterator[dict]:
        """What has come since the last call; `open` tells whether more can come."""
        try:
            while self.open:
                piece = self._socket.recv(PIECE)
                if not piece:
                    self.close()
                self._in += piece
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
        *lines, self._in = self._in.split(b"\n")
        for line in lines:
            with suppress(ValueError):
                words = json.loads(line)
                if isinstance(words, dict):
                    yield words

    def close(self) -> None:
        """Hang up."""
        self.open = False
        with suppress(OSError):
            self._socket.close()
