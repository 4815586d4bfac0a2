"""Cutting input files of any size into chunks of whole documents, in order, from any position on.

JSONL: a document a line. Plain text: a document a file, or the pieces between separators. Either of them packed, or from a pipe.
Parquet: a document a row. An uncompressed JSONL file is only looked at where chunks end, and workers read the ranges; a stream
is unpacked here, because only one process can.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from data_tools.packing import DAMAGE, damaged, unpacked
from data_tools.sources import Source

CHUNK_BYTES = 1 << 20
READ_BYTES = 1 << 16


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


def read_chunks(
    sources: list[Source], text_key: str, split_on: str | None, start: tuple[int, int] = (0, 0), size: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Chunks of about `size` bytes from position `start` = (file number, position in it) to the end of the last file."""
    for number in range(start[0], len(sources)):
        source, position = sources[number], start[1] if number == start[0] else 0
        if source.kind == "parquet":
            from data_tools.parquet import read_column  # pyarrow takes a while to import

            for first, column, rows in read_column(source.path, text_key, position, size):
                end = first + len(column)
                yield Chunk(number, source, first, end, column, source.size * end // rows)
        elif source.kind == "text" and split_on is None:
            if position == 0:
                yield _whole_file(number, source)
        elif source.kind == "jsonl" and source.on_disk:
            yield from _line_ranges(number, source, position, size)
        else:
            separator = b"\n" if source.kind == "jsonl" else split_on.encode()
            yield from _stream_chunks(number, source, separator, position, size)


def _whole_file(number: int, source: Source) -> Chunk:
    """A file that is one document; an empty one, too, has a position after it."""
    data = None if source.on_disk else b"".join(block for block, _ in content(source))
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
    for block, consumed in content(source):
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


def content(source: Source) -> Iterator[tuple[bytes, int]]:
    """The unpacked content in blocks, each with the bytes of the file passed by then. Raises DataError for a damaged file."""
    with source.open() as file:
        blocks = unpacked(file, source.packing) if source.packing else iter(lambda: file.read(READ_BYTES), b"")
        try:
            for block in blocks:
                yield block, 0 if source.pipe else file.tell()
        except DAMAGE as error:
            if not source.packing:
                raise
            raise damaged(source.path, source.packing, error) from None
