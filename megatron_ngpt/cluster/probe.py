"""Runs on a host for `ngpt preflight`: a JSON question a line on standard input, a JSON answer a line on standard output.

    {"ask": "clock"}  ->  {"time": 1782000000.0}

Ends with its input, or after `LIFETIME` seconds, and takes away what it wrote.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.cluster import facts
from megatron_ngpt.training.directory import nearest

LIFETIME = 300
KNOCK_SECONDS = 3.0


class Probe:
    """What a host can be asked; a method is a question, its arguments the question's further keys."""

    def __init__(self):
        self._token: Path | None = None
        self._door: socket.socket | None = None

    def hello(self) -> dict:
        """An answer, as a sign of life."""
        return {}

    def clock(self) -> dict:
        """The time here, in seconds since 1970."""
        return {"time": time.time()}

    def facts(self, recipe: str, overrides: list[str], ranks: int) -> dict:
        """All that this host can tell by itself."""
        return facts.gather(recipe, overrides, ranks)

    def write_token(self, output: str, name: str) -> dict:
        """Write a file of this name where the run directory will be."""
        self._token = nearest(Path(output)) / name
        try:
            self._token.write_text(socket.gethostname())
        except OSError as error:
            return {"problem": f"cannot write in {self._token.parent}: {error.strerror}"}
        return {"folder": str(self._token.parent)}

    def see_tokens(self, output: str, names: list[str], patience: float) -> dict:
        """Which of the files are here; some file systems take their time: `patience` in seconds."""
        until = time.monotonic() + patience
        while True:
            seen = sorted(set(os.listdir(nearest(Path(output)))) & set(names))
            if len(seen) == len(names) or time.monotonic() > until:
                return {"seen": seen}
            time.sleep(0.2)

    def listen(self, port: int) -> dict:
        """Listen at the port that ranks are to meet at; where it is taken, at any other."""
        found: dict = {}
        try:
            self._door = _listener(port)
        except OSError as error:
            found["problem"] = f"port {port}: {error.strerror}"
            self._door = _listener(0)
        return {**found, "port": self._door.getsockname()[1]}

    def knock(self, addresses: list[str], port: int) -> dict:
        """Which of another host's addresses answer from here."""
        return {"reached": [address for address in addresses if _answers(address, port)]}

    def leave(self) -> dict:
        """Listen no more."""
        self._door.close()
        return {}

    def links(self, rank: int, world: int, address: str, port: int) -> dict:
        """Meet the other hosts as ranks do, and measure the links between them; the loss of a known tiny model on each device here."""
        from megatron_ngpt.cluster import links, tiny

        return {"losses": tiny.losses(), **links.measure(rank, world, address, port)}

    def end(self) -> None:
        """Take away what this host wrote."""
        if self._token:
            with suppress(OSError):
                self._token.unlink()


def _listener(port: int) -> socket.socket:
    return socket.create_server(("", port), family=socket.AF_INET)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), KNOCK_SECONDS).close()
    except OSError:
        return False
    return True


def serve(questions, answer: Callable[[str], None]) -> None:
    """Answer until there are no more questions."""
    probe = Probe()
    try:
        for line in questions:
            details = json.loads(line)
            try:
                found = getattr(probe, details.pop("ask"))(**details)
            except Exception as error:
                found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            answer(json.dumps(found))
    finally:
        probe.end()


def main() -> None:
    """Serve standard input; what libraries print goes to standard error."""
    def stop(*_) -> None:
        sys.exit(1)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.alarm(LIFETIME)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    serve(sys.stdin, lambda line: print(line, file=answers, flush=True))
    os._exit(0)  # the host is left as it was: no need to wait for torch's own farewell


if __name__ == "__main__":
    main()
