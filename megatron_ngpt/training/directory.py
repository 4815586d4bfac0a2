"""Whether a run directory can be written, tried in every place where a run writes."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("checkpoints", "logs", "training", "validation", "profiles")
FILES = ("metrics.jsonl", "events.jsonl", "metrics.csv", "recipe.yaml")
CHOOSE = "choose a directory that can be made or written"


def output_problems(output: Path) -> list[str]:
    """A line for each place of the run directory that cannot be written; nothing is left behind.

    What does not exist yet is tried in the nearest directory above it that does.
    """
    key = f"training.output = {output}"
    os.fsencode(output)  # a name that this environment cannot write is told at the door
    if problem := _folder_problem(output):
        return [f"{key}: {problem}; {CHOOSE}"]
    found = [problem for name in FOLDERS if os.path.lexists(output / name) and (problem := _folder_problem(output / name))]
    found += [problem for path in _files(output) if (problem := _file_problem(path))]
    return [f"{key}: {problem}; make it writable, or {CHOOSE}" for problem in found]


def nearest(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return next(found for found in (path, *path.absolute().parents) if os.path.lexists(found))


def _folder_problem(folder: Path) -> str | None:
    existing = nearest(folder)
    if not existing.exists():
        return f"{existing} is a symbolic link that leads nowhere"
    if not existing.is_dir():
        return f"{existing} is a file"
    try:
        with tempfile.TemporaryDirectory(prefix=".ngpt-", dir=existing):
            return None
    except OSError as error:
        return f"cannot write in {existing}: {error.strerror}"


def _files(output: Path) -> Iterator[Path]:
    """The files that a run goes on with, where they are."""
    yield from (output / name for name in FILES if os.path.lexists(output / name))
    if (output / "logs").is_dir():
        yield from sorted((output / "logs").glob("rank-*.log"))


def _file_problem(path: Path) -> str | None:
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return f"{path} is no regular file"
        with open(path, "r+b"):
            return None
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
