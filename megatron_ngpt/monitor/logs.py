"""One log file a rank. While a run goes on, everything that is written to standard output or error lands there."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

STANDARD_STREAMS = 1, 2

log = logging.getLogger(__name__)


def log_path(output: Path, rank: int) -> Path:
    """Where `rank` of the run in `output` writes its log."""
    return output / "logs" / f"rank-{rank:05}.log"


@contextmanager
def configure_logging(output: Path, rank: int) -> Iterator[TextIO]:
    """Send this rank's output to its log file; yields the console's stream, which alone still reaches the person.

    The redirection is one of file descriptors, since DeepSpeed prints, logs through a handler of its own that remembers
    `sys.stdout`, and gloo and NCCL write from C++. An exception that leaves the block is logged with its traceback and goes on,
    and the streams are as before: who catches it can tell the person.
    """
    path = log_path(output, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    saved = {number: os.dup(number) for number in STANDARD_STREAMS}
    encoding = getattr(sys.stdout, "encoding", None)
    file = path.open("a", encoding="utf-8", buffering=1)
    with _terminal(os.dup(saved[1]), encoding) as console:
        for number in STANDARD_STREAMS:
            os.dup2(file.fileno(), number)
        handler = _attach(file)
        log.info("rank %d on %s, process %d: %s", rank, socket.gethostname(), os.getpid(), " ".join(sys.argv))
        try:
            yield console
        except Exception:
            log.exception("rank %d failed", rank)
            raise
        finally:
            _flush()
            logging.getLogger().removeHandler(handler)
            logging.captureWarnings(False)
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
            with suppress(OSError):  # what a full disk did not take is lost to the log, and is no reason to fail
                file.close()


@contextmanager
def _terminal(descriptor: int, encoding: str | None) -> Iterator[TextIO]:
    """A stream to the person, who may not be there any more when it is closed."""
    console = os.fdopen(descriptor, "w", buffering=1, encoding=encoding, errors="replace")
    try:
        yield console
    finally:
        with suppress(OSError):
            console.close()


def _attach(file: TextIO) -> logging.Handler:
    """A handler on the root logger that writes time, level and origin of each message to `file`."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler


def _flush() -> None:
    """Empty Python's own buffers before the descriptors under them change; on a full disk, as far as they go."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
