"""A checkpoint directory: what is in it, and when it is complete.

`state.json` is written last, and lists every other file with its size. A directory under its final name was renamed to it when
nothing was missing; the list finds out later losses.
"""

import json
import os
import shutil
from pathlib import Path

from megatron_ngpt.errors import CheckpointError

STATE = "state.json"
FORMAT = 1
PARTIAL = ".partial"  # ends the name of a directory that is being written
OBSOLETE = ".obsolete"  # ends the name of a directory that is being removed


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` durably and in one move: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + PARTIAL)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_state(directory: Path, state: dict) -> None:
    """Close a directory whose tensors are written: the state, with the list of files."""
    files = {entry.name: entry.stat().st_size for entry in sorted(directory.iterdir())}
    write_text(directory / STATE, json.dumps({**state, "format": FORMAT, "files": files}, indent=1))


def read_state(directory: Path) -> dict:
    """The state of a complete checkpoint.

    Raises:
        CheckpointError: no checkpoint there, one of another format, or a file is missing or has lost or gained bytes.
    """
    try:
        state = json.loads((directory / STATE).read_text("utf-8"))
        files = dict(state["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{directory} is not a checkpoint: it holds no {STATE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / STATE} cannot be read: {error}") from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{directory} has format {state.get('format')}; this version reads format {FORMAT}")
    for name, size in files.items():
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{directory} is not complete: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{directory} is damaged: {name} has {file.stat().st_size} bytes, not {size}")
    return state


def publish(partial: Path, final: Path) -> None:
    """Give a complete directory its final name; one that has the name makes room, and goes when the new one is in place."""
    sync_directory(partial)
    obsolete = final.with_name(final.name + OBSOLETE)
    if final.exists():
        remove(obsolete)
        os.rename(final, obsolete)
    try:
        os.rename(partial, final)
    except OSError:
        if obsolete.exists():
            os.rename(obsolete, final)
        raise
    sync_directory(final.parent)
    shutil.rmtree(obsolete, ignore_errors=True)


def retire(directory: Path) -> None:
    """Remove a complete checkpoint; killed on the way, it leaves nothing that looks like one."""
    obsolete = directory.with_name(directory.name + OBSOLETE)
    remove(obsolete)
    os.rename(directory, obsolete)
    remove(obsolete)


def remove(path: Path) -> None:
    """Remove a file or a directory tree if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
