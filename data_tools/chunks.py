"""Cutting input files of any size into chunks of whole documents, in order, from any position on.

JSONL: a document a line. Plain text: a document a file, or the pieces between separators. Either of them gzip or zstd.
Parquet: a document a row. An uncompressed JSONL file is only looked at where chunks end, and workers read the ranges; a stream
is unpacked here, because only one process can.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from megatron_ngpt.errors import ConfigError, DataError

CHUNK_BYTES = 1 << 20
READ_BYTES = 1 << 16
ZSTD_BYTES = 1 << 10            # few, because all that they unpack to comes at once
JSONL = (".jsonl", ".json", ".ndjson")
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
LARGEST_WINDOW = 1 << 31        # zstd --long files ask for more memory than the library's default allows


@dataclass(frozen=True)
class Source:
    """An input file: kind is jsonl, text or parquet; packing None, gzip or zstd."""

    path: str
    kind: str
    packing: str | None
    size: int


@dataclass(frozen=True)
class Chunk:
    """Some whole documents of file number `file`. `end`: the position after them, in bytes of unpacked text or rows of Parquet.

    `data` None: bytes [start, end) of the file are to be read. `consumed`: bytes of the file on disk that were passed.
    """

    file: int
    source: Source
    start: int
    end: int
    data: object
    consumed: int


def recognise(path: str) -> Source:
    """What kind of input a file is, by the ends of its name."""
    try:
        size = os.stat(path).st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror}") from None
    stem, end = os.path.splitext(path.lower())
    packing = COMPRESSED.get(end)
    if packing:
        end = os.path.splitext(stem)[1]
    if end == ".parquet":
        if packing:
            raise ConfigError(f"--input {path}: Parquet compresses inside; unpack the file first")
        return Source(path, "parquet", None, size)
    return Source(path, "jsonl" if end in JSONL else "text", packing, size)


def read_chunks(
    sources: list[Source], text_key: str, split_on: str | None, start: tuple[int, int] = (0, 0), size: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Chunks of about `size` bytes from position `start` = (file number, position in it) to the end of the last file."""
    for number in range(start[0], len(sources)):
        source, position = sources[number], start[1] if number == start[0] else 0
        if source.kind == "parquet":
            from data_tools.parquet import parquet_chunks  # pyarrow takes a while to import

            yield from parquet_chunks(number, source, text_key, position, size)
        elif source.kind == "text" and split_on is None:
            if position == 0:
                yield _whole_file(number, source)
        elif source.kind == "jsonl" and source.packing is None:
            yield from _line_ranges(number, source, position, size)
        else:
            separator = b"\n" if source.kind == "jsonl" else split_on.encode()
            yield from _stream_chunks(number, source, separator, position, size)


def _whole_file(number: int, source: Source) -> Chunk:
    """A file that is one document; an empty one, too, has a position after it."""
    data = b"".join(block for block, _ in unpacked(source)) if source.packing else None
    return Chunk(number, source, 0, max(1, source.size if data is None else len(data)), data, source.size)


def _line_ranges(number: int, source: Source, position: int, size: int) -> Iterator[Chunk]:
    """Ranges that end after a newline, found by reading only there."""
    with open(source.path, "rb") as file:
        while position < source.size:
            file.seek(min(position + size, source.size))
            end = file.tell()
            while end < source.size and (block := file.readline(READ_BYTES)):
                end += len(block)
                if block.endswith(b"\n"):
                    break
            yield Chunk(number, source, position, end, None, end)
            position = end


def _stream_chunks(number: int, source: Source, separator: bytes, position: int, size: int) -> Iterator[Chunk]:
    """Pieces of the unpacked text that end after a separator."""
    waiting, searched, begin, consumed = bytearray(), 0, 0, 0
    for block, consumed in unpacked(source):
        waiting += block
        if len(waiting) < size:
            continue
        cut, searched = _last_cut(waiting, separator, searched)
        if cut:
            if begin + cut > position:
                yield Chunk(number, source, begin, begin + cut, bytes(waiting[:cut]), consumed)
            del waiting[:cut]
            begin, searched = begin + cut, searched - cut
    if waiting and begin + len(waiting) > position:
        yield Chunk(number, source, begin, begin + len(waiting), bytes(waiting), consumed)


def _last_cut(text: bytearray, separator: bytes, searched: int) -> tuple[int, int]:
    """(the end of the last separator, where the next search begins), separators counted from the left as str.split does."""
    cut = 0
    while (found := text.find(separator, searched)) >= 0:
        cut = searched = found + len(separator)
    return cut, max(searched, len(text) - len(separator) + 1)


def unpacked(source: Source) -> Iterator[tuple[bytes, int]]:
    """The unpacked content in blocks, each with the bytes of the file passed by then. Raises DataError for a damaged file."""
    try:
        with open(source.path, "rb") as file:
            if source.packing == "zstd":
                yield from _unpack_zstd(file)
            else:
                stream = gzip.GzipFile(fileobj=file) if source.packing else file
                while block := stream.read(READ_BYTES):
                    yield block, file.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{source.path}: damaged or cut off {source.packing} file ({error})") from None


def _unpack_zstd(file) -> Iterator[tuple[bytes, int]]:
    """All frames of a zstd file. A frame that is cut off is an error, which the library's own stream reader passes over."""
    factory = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    frame, inside = factory.decompressobj(), False
    while packed := file.read(ZSTD_BYTES):
        while packed:
            yield frame.decompress(packed), file.tell()
            packed, inside = frame.unused_data, not frame.eof
            if frame.eof:
                frame = factory.decompressobj()
    if inside:
        raise EOFError("the last frame is not complete")
