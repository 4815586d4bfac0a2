"""Packed files: known by their first bytes, unpacked in small steps. A file that is cut off or altered is an error."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from megatron_ngpt.errors import DataError

PACKED_BYTES = 1 << 10          # few, because all that they unpack to comes at once
LARGEST_WINDOW = 1 << 31        # zstd --long files ask for more memory than the library's default allows
LONGEST_HEAD = 1 << 20          # packed bytes that hold the first block of any of these
UNPACKERS: dict[str, Callable] = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj(),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
FIRST_BYTES = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),     # the second: a frame to be passed over
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", re.DOTALL),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def packing_of(head: bytes, end: str) -> str | None:
    """How a file that begins so is packed: a key of UNPACKERS, or None. `end` of its name: old .lzma files have no mark."""
    if end == ".lzma" and head[:3] == b"\x5d\x00\x00":
        return "xz"
    return next((packing for packing, pattern in FIRST_BYTES.items() if pattern.match(head)), None)


def first_unpacked(head: bytes, packing: str, path: str, size: int) -> bytes:
    """About the first `size` bytes that the packed bytes `head` unpack to. Raises DataError if they are damaged."""
    found = b""
    try:
        for block in unpacked(io.BytesIO(head), packing):
            found += block
            if len(found) >= size:
                break
    except EOFError:                # where `head` ends
        pass
    except DAMAGE as error:
        raise damaged(path, packing, error) from None
    return found[:size]


def unpacked(file: BinaryIO, packing: str) -> Iterator[bytes]:
    """The content of all frames of a file. Raises one of DAMAGE where it is cut off, or something else follows."""
    unpacker = UNPACKERS[packing]
    frame, inside = unpacker(), False
    while packed := file.read(PACKED_BYTES):
        while packed := (packed if inside else packed.lstrip(b"\0")):       # padding between frames
            yield frame.decompress(packed)
            packed, inside = frame.unused_data, not frame.eof
            if frame.eof:
                frame = unpacker()
    if inside:
        raise EOFError("the last frame is not complete")


def damaged(path: str, packing: str, error: Exception) -> DataError:
    """The line about a packed file that is not whole."""
    return DataError(f"{path}: damaged or cut off {packing} file ({error})")
