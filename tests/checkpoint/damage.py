"""Damage that a disk may do."""

from pathlib import Path


def flip(file: Path, at: int) -> None:
    """Turn one bit of a file; `at` counts bytes, from the end if it is negative."""
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
