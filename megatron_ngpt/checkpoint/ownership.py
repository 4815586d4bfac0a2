"""Who may write in a run directory: one run at a time, also where hosts share the file system.

    OUTPUT/owner-00000003.json    the run that owns the directory: a token, host, process, its start, and a heartbeat

The highest number owns. Who takes a directory over from number n creates n + 1, which one process alone can, and removes the lower ones. So
an owner that was taken for dead and wakes up finds its own file gone, and stops before it writes or deletes anything (`check`).

Whether an owner lives is certain on its own host, where its process is looked up. From another host its heartbeat must stand still for
`STALE` seconds of the observer's own clock; nobody's clocks are compared. Imports no torch: a start is refused at once.
"""

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.errors import ConfigError, NgptError

BEAT = 5.0  # seconds between two beats
STALE = 60.0  # seconds without a beat after which another host takes over

_NAME = re.compile(r"owner-(\d{8})\.json")
Say = Callable[[str], None]


class OwnershipLostError(NgptError):
    """Another run has taken the run directory: this one may not write there any more."""


class Ownership:
    """The run directory `output` is this process's, from `claim` to `release`."""

    def __init__(self, path: Path, token: str, told: dict):
        self._path, self._token, self._told = path, token, told
        self._beats = 0
        self._confirmed = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._beat_on, name="owner", daemon=True).start()

    def check(self) -> None:
        """Before anything is written or deleted.

        Raises:
            OwnershipLostError: another run has the directory.
            OSError: the disk does not answer, so that nothing is known.
        """
        if _owner_path(self._path.parent) == self._path and self._token in (_content_of(self._path) or ""):
            self._confirmed = time.monotonic()
            return
        successor = _current(self._path.parent)
        by = f"is used by {_words(successor)} now" if successor else "is not this run's any more"
        raise OwnershipLostError(f"{self._path.parent} {by}: this run was taken for dead, and stops without writing there")

    def lost(self) -> bool:
        """Whether another run has the directory; looks only when the last look is older than two beats, within which nobody can have."""
        if time.monotonic() - self._confirmed < 2 * BEAT:
            return False
        try:
            self.check()
        except OwnershipLostError:
            return True
        except OSError:  # not known, and nothing can be written now anyway
            return False
        return False

    def release(self) -> None:
        """Leave the directory to others."""
        self._over.set()
        with suppress(OSError):
            if self._token in (_content_of(self._path) or ""):
                self._path.unlink()

    def _beat_on(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError, OwnershipLostError):  # the next one may pass; `check` tells what is lost
                self.check()
                self._beat()

    def _beat(self) -> None:
        """In place: the file that is open here is this owner's own, whatever has its name by now."""
        self._beats += 1
        with open(self._path, "r+b", buffering=0) as file:
            if self._token in file.read().decode():
                file.seek(0)
                file.write(_content(self._told, self._beats))


def claim(output: Path, job: str, say: Say = lambda _: None) -> Ownership:
    """Make the run directory this process's own; what others may ask is in the file. `job` tells the ranks of one start from others.

    Raises:
        ConfigError: another run owns it, in one line with its host, process and start.
        OSError: it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    while True:
        number = _wait_until_free(output, None, say)
        token = secrets.token_hex(8)
        told = {"token": token, "job": job, **_this_process(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        path = output / f"owner-{number + 1:08d}.json"
        if _create(path, _content(told, 0)):
            break
    for older in _files(output):
        if older < path:
            older.unlink(missing_ok=True)
    return Ownership(path, token, told)


def check_free(output: Path, job: str, say: Say = lambda _: None) -> None:
    """As `claim` without taking it, for the ranks of `job` that do not own: the owner may already be of their own start."""
    _wait_until_free(output, job, say)


def user_of(output: Path) -> str | None:
    """Who owns the run directory, as far as a first look can tell, in words; None: nobody."""
    owner = _current(output)
    return _words(owner) if owner and _alive(owner) is not False else None


def _wait_until_free(output: Path, job: str | None, say: Say) -> int:
    """The highest number that was given, when its owner is dead. Raises ConfigError if it lives."""
    seen, since = None, time.monotonic()
    while True:
        path = _owner_path(output)
        if path is None:
            return 0
        owner, number = _read(path), int(_NAME.fullmatch(path.name)[1])
        if owner is None and not path.exists():
            continue
        owner = owner or {}
        if job is not None and owner.get("job") == job:
            return number
        alive = _alive(owner)
        if alive is False:
            return number
        if alive or (seen and seen != (path, owner) and owner):
            raise ConfigError(
                f"training.output = {output}: in use by {_words(owner)}; wait until that run is over, or choose another training.output"
            )
        if seen is None:
            say(f"{output} was used by {_words(owner)}; waiting at most {STALE:.0f} seconds for a sign of life")
        if seen != (path, owner):
            seen, since = (path, owner), time.monotonic()
        if time.monotonic() - since > STALE:
            return number
        time.sleep(0.5)


def _this_process() -> dict:
    return {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(), "ticks": start_of(os.getpid())}


def _machine() -> str | None:
    """Where a process number means the same: this boot of this kernel, and its name space of processes; None where that is unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def start_of(process: int) -> int | None:
    """When a process of this machine started, in ticks since boot; None if it is not there, or only not yet waited for."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _alive(owner: dict) -> bool | None:
    """Whether an owner's process lives; None where that cannot be looked up from here."""
    machine, process = owner.get("machine"), owner.get("process")
    if machine is None or machine != _machine() or not isinstance(process, int):
        return None
    return start_of(process) is not None and start_of(process) == owner.get("ticks")


def _words(owner: dict) -> str:
    """Who it is, for people."""
    host, process, started = (owner.get(key, "unknown") for key in ("host", "process", "started"))
    return f"process {process} on {host}, started {started}"


def _content(told: dict, beats: int) -> bytes:
    """Of one length, however often it has beaten, so that a beat replaces the one before in place."""
    return (json.dumps({**told, "beat": f"{beats:012d}"}) + "\n").encode()


def _create(path: Path, content: bytes) -> bool:
    """Make a file with all its content if none has its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            with open(path, "xb") as file:
                file.write(content)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _files(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if _NAME.fullmatch(path.name)) if output.is_dir() else []


def _owner_path(output: Path) -> Path | None:
    return next(reversed(_files(output)), None)


def _current(output: Path) -> dict | None:
    path = _owner_path(output)
    return _read(path) if path else None


def _content_of(path: Path) -> str | None:
    """The text of a file; None if it is gone. Raises OSError for anything else, which proves nothing."""
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict | None:
    """What an owner's file says; None if it is gone, or not written yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
