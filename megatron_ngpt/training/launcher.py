"""What DeepSpeed's launcher was asked for, as a rank can see it in the processes above it.

The launcher runs on this host alone, with a warning that `--quiet` hides, where the file that `--hostfile` names is not there.
"""

import os
from collections.abc import Iterator
from pathlib import Path

OPTIONS = ("--hostfile", "-H")


def missing_hostfile() -> list[str]:
    """A line if DeepSpeed's launcher was given a host file that is not there; nothing where the system has no /proc to look at."""
    for words, directory in _above():
        path = _option(words)
        if path and not (directory / path).is_file():
            return [f"--hostfile {path}: no such file, and deepspeed has started the ranks of this host alone; give the list of hosts"]
    return []


def _above() -> Iterator[tuple[list[str], Path]]:
    """Command line and working directory of the processes that started this one, the nearest first."""
    process = os.getppid()
    try:
        while process > 1:
            folder = Path("/proc") / str(process)
            words = (folder / "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
            yield words, folder / "cwd"
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
