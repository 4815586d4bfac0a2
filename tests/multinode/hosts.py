"""Several hosts on this machine for a test: made by hosts.sh, and removed with everything that runs there."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY

SCRIPT = Path(__file__).with_name("hosts.sh")
TOOLS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "nsenter": "util-linux"}
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
VARIABLES = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # for scripts that look for deepspeed, torchrun and python
DEEPSPEED = Path(sys.executable).with_name("deepspeed")
SECONDS = 150


@dataclass(frozen=True)
class Hosts:
    """Running hosts, numbered from 1 and named host1, host2, ...; `folder` holds their keys and DeepSpeed's hostfile."""

    folder: Path

    @property
    def hostfile(self) -> Path:
        """Of all of them, each with its slots."""
        return self.folder / "hostfile"

    def do(self, verb: str, *arguments) -> None:
        """What hosts.sh does to a host: cut, mend, slow, kill, boot."""
        subprocess.run([SCRIPT, verb, self.folder, *map(str, arguments)], check=True, timeout=60)

    def command(self, k: int, *words) -> list[str]:
        """The words as a command that runs on host k, in its caller's directory and with its environment."""
        return [str(SCRIPT), "on", str(self.folder), str(k), *map(str, words)]

    def on(self, k: int, *words, seconds: float = SECONDS, **environment: str) -> subprocess.CompletedProcess:
        """A finished command on host k, started in the repository; `environment` comes on top of this process's."""
        return subprocess.run(
            self.command(k, *words),
            cwd=REPOSITORY, env=os.environ | ENVIRONMENT | environment, timeout=seconds, capture_output=True, text=True, errors="replace",
        )

    def processes(self, k: int) -> list[str]:
        """The command lines of host k, without those of its ssh door."""
        lines = self.on(k, "ps", "-eo", "args=").stdout.splitlines()
        return [line for line in lines if not line.startswith(("sshd", "/usr/sbin/sshd", "ps "))]


@contextmanager
def hosts_of(*slots: int) -> Iterator[Hosts]:
    """Hosts with so many slots each. Skips the test where they can't be made; CI may not skip, and fails."""
    if reason := _missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder, open(Path(tempfile.gettempdir()) / "ngpt-test-hosts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # names and addresses are fixed: one set of hosts at a time
        try:
            subprocess.run([SCRIPT, "up", folder, *map(str, slots)], check=True, timeout=60)
            yield Hosts(Path(folder))
        finally:
            subprocess.run([SCRIPT, "down", folder], check=True, timeout=60)


def succeeded(done: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The same command; the test fails with what it printed if it did not end with status 0."""
    assert done.returncode == 0, f"exit status {done.returncode}\n{(done.stdout + done.stderr)[-5000:]}"
    return done


def _missing() -> str | None:
    """Why hosts can't be made here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None
