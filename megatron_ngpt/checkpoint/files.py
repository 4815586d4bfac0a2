"""Moves of files and directories that a kill or a full disk cannot leave half done."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

PARTIAL = ".partial"  # ends the name of a directory that is being written
OBSOLETE = ".obsolete"  # ends the name of a directory that is being removed


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` durably and in one move: a reader sees the old file or the new one."""
    temporary = path.with_name(path.name + PARTIAL)
    with open(temporary, "wb") as file:
        file.write(content)
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


def publish(partial: Path, final: Path) -> None:
    """Give a complete directory its final name; one that has the name makes room, and goes when the new one is in place."""
    sync_directory(partial)
    obsolete = final.with_name(final.name + OBSOLETE)
    replaces = os.path.lexists(final)
    if replaces:
        remove(obsolete)
        os.rename(final, obsolete)
    try:
        os.rename(partial, final)
    except OSError:
        if replaces:
            os.rename(obsolete, final)
        raise
    sync_directory(final.parent)
    with suppress(OSError):  # tidied with the next save
        remove(obsolete)


def retire(directory: Path) -> None:
    """Remove a complete checkpoint; killed on the way, it leaves nothing that looks like one. Of a symbolic link, the link alone."""
    obsolete = directory.with_name(directory.name + OBSOLETE)
    remove(obsolete)
    os.rename(directory, obsolete)
    remove(obsolete)


def remove(path: Path) -> None:
    """Remove a file, a symbolic link or a directory tree if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
