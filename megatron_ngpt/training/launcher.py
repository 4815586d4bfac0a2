"""The launcher of this rank, as it can be seen in the processes above it: what it was asked for, and whether it still is there.

DeepSpeed's launcher runs on this host alone, with a warning that `--quiet` hides, where the file that `--hostfile` names is not there.
"""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from megatron_ngpt.checkpoint.ownership import start_of

OPTIONS = ("--hostfile", "-H")
SESSIONS = ("sshd: ", "sshd-session: ")  # how an ssh server calls the processes of one
LAUNCHERS = ("deepspeed", "ds", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run")


def missing_hostfile() -> list[str]:
    """A line if DeepSpeed's launcher was given a host file that is not there; nothing where the system has no /proc to look at."""
    for _, words, directory in _above():
        path = _option(words)
        if path and not (directory / path).is_file():
            return [f"--hostfile {path}: no such file, and deepspeed has started the ranks of this host alone; give the list of hosts"]
    return []


def _above() -> Iterator[tuple[int, list[str], Path]]:
    """Number, command line and working directory of the processes that started this one, the nearest first."""
    process = os.getppid()
    try:
        while process > 1:
            folder = Path("/proc") / str(process)
            words = (folder / "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
            yield process, words, folder / "cwd"
            process = int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return


def _option(words: list[str]) -> str | None:
    """The host file in a command line of `deepspeed`; None in any other's."""
    if not any(Path(word).name in ("deepspeed", "ds") or "deepspeed.launcher.runner" in word for word in words[:3]):
        return None
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word in OPTIONS:
            return value
        if word.startswith("--hostfile="):
            return word.partition("=")[2]
    return None


@cache
def launchers() -> list[tuple[int, int | None]]:
    """The launchers above this process, each a process with its start: while ranks train, one that ends takes nobody with it.

    The processes of `deepspeed` and torchrun, and of the ssh session that they were started in, unless nohup keeps them from its end. A
    shell may end, and what it started go on. Looked up once, as early as possible.
    """
    found, attached = [], signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    for process, words, _ in _above():
        if _program(words) in LAUNCHERS or (attached and words[0].startswith(SESSIONS)):
            found.append((process, start_of(process)))
        elif words[1:2] != ["-c"]:  # a shell may lie between ssh and its command
            break
    return found


def _program(words: list[str]) -> str:
    """The name of the program in a command line: behind Python's own, if there is one."""
    names = (Path(word).name for word in words if word not in ("-u", "-m"))
    return next((name for name in names if not name.startswith("python")), "")


def running(launcher: tuple[int, int | None]) -> bool:
    """Whether a launcher still is there."""
    return start_of(launcher[0]) == launcher[1]
