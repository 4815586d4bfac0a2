"""What an input file is: its first bytes decide, its name where they leave a choice. What holds no documents is refused."""

import os
import stat
from dataclasses import dataclass, field

from data_tools.packing import LONGEST_HEAD, first_unpacked, packing_of
from data_tools.pipes import Pipe, open_pipe
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.foreign import read_json

HEAD_BYTES = 1 << 16
FORMATS = ("jsonl", "text", "parquet")
JSONL = (".jsonl", ".json", ".ndjson", ".jsonlines")
PACKED_NAMES = (".gz", ".zst", ".zstd", ".bz2", ".xz", ".lzma")
TABLES = {".csv": "CSV", ".tsv": "tab-separated values"}
BOM = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
FOREIGN = [  # (offset, first bytes, what they begin)
    (0, b"PK\x03\x04", "a zip archive"), (0, b"PK\x05\x06", "a zip archive"), (257, b"ustar", "a tar archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (0, b"Rar!\x1a\x07", "a rar archive"), (0, b"!<arch>\n", "an ar archive"),
    (0, b"\x04\x22\x4d\x18", "packed by lz4"), (0, b"\x89LZO", "packed by lzop"),
    (0, b"LZIP\x01", "packed by lzip"), (0, b"\x1f\x9d", "packed by compress"), (0, b"\xff\x06\x00\x00sNaPpY", "packed by snappy"),
    (0, b"PARE", "encrypted Parquet"), (0, b"ARROW1", "an Arrow file"), (0, b"FEA1", "a Feather file"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream"), (0, b"Obj\x01", "Avro"), (0, b"SEQ\x06", "a Hadoop sequence file"),
    (0, b"\x89HDF\r\n", "HDF5"), (0, b"SQLite format 3\0", "an SQLite database"), (0, b"\x93NUMPY", "a numpy array"),
    (0, b"\x80\x02", "a pickle"), (0, b"\x80\x03", "a pickle"), (0, b"\x80\x04", "a pickle"), (0, b"\x80\x05", "a pickle"),
    (0, b"MMIDIDX\0", "the index of a tokenised dataset"), (0, b"%PDF-", "PDF"), (0, b"%!PS", "PostScript"), (0, b"{\\rtf", "RTF"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office document"), (0, b"WARC/", "a WARC web archive"), (0, b"<mediawiki", "a MediaWiki dump"),
    (0, b"\x89PNG", "a picture"), (0, b"\xff\xd8\xff", "a picture"), (0, b"GIF89a", "a picture"), (0, b"\x7fELF", "a program"),
    (0, b"\xff\xfe\0\0", "text in UTF-32"), (0, b"\0\0\xfe\xff", "text in UTF-32"),
    (0, b"\xff\xfe", "text in UTF-16"), (0, b"\xfe\xff", "text in UTF-16"),
]


@dataclass(frozen=True)
class Source:
    """An input file: kind is jsonl, text or parquet; packing None or a key of `packing.UNPACKERS`; a pipe has size 0."""

    path: str
    kind: str
    packing: str | None
    size: int
    pipe: Pipe | None = field(default=None, compare=False, repr=False)

    @property
    def on_disk(self) -> bool:
        """Whether any part of the content can be read from the file as it is."""
        return self.packing is None and self.pipe is None

    def open(self):
        """The file on disk, or what a pipe gives, once."""
        return self.pipe.take() if self.pipe else open(self.path, "rb")


def recognise_all(paths: list[str], stated: str | None) -> list[Source]:
    """`recognise` of each file; everything that is wrong is told together."""
    sources, problems = [], []
    for path in paths:
        try:
            sources.append(recognise(path, stated))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return sources


def recognise(path: str, stated: str | None = None) -> Source:
    """What kind of input a file is. `stated` is `--format`: the kind whatever name and content say; packed files are unpacked anyway.

    Raises ConfigError for a file that cannot be opened or is no text, JSONL or Parquet, DataError for a damaged one.
    """
    try:
        about = os.stat(path)
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISFIFO(about.st_mode)):
            raise ConfigError(f"--input {path}: neither a file nor a pipe; give a file, or pipe text in")
        pipe = open_pipe(path) if stat.S_ISFIFO(about.st_mode) else None
        stem, end = os.path.splitext(path.lower())
        raw = _first(path, pipe, HEAD_BYTES)
        packing = packing_of(raw, end)
        raw = _first(path, pipe, LONGEST_HEAD) if packing else raw
    except OSError as error:
        raise ConfigError(f"--input {path}: {error.strerror}") from None
    head = first_unpacked(raw, packing, path, HEAD_BYTES) if packing else raw[:HEAD_BYTES]
    named = end in PACKED_NAMES
    if named:
        end = os.path.splitext(stem)[1]
    if not stated and named and not packing and not _begins_with_object(head):
        raise DataError(f"{path}: damaged, or not packed as its name says; give --format jsonl or text to read it as it is")
    kind = stated or _kind(path, end, head, packing)
    if kind == "parquet" and (pipe or packing):
        reason = "a pipe, and Parquet is read from its end" if pipe else "packed, and Parquet compresses inside"
        raise ConfigError(f"--input {path}: {reason}; give an unpacked file")
    return Source(path, kind, packing, 0 if pipe else about.st_size, pipe)


def _first(path: str, pipe: Pipe | None, size: int) -> bytes:
    if pipe:
        return pipe.head(size)
    with open(path, "rb") as file:
        return file.read(size)


def _kind(path: str, end: str, head: bytes, packing: str | None) -> str:
    """jsonl, text or parquet, by the first bytes, and the name's end where both of the first two are possible."""
    if head.startswith(PARQUET):
        return "parquet"
    if end == ".parquet":
        raise DataError(f"{path}: cannot be read as Parquet (it does not begin with PAR1); give --format jsonl or text if it is that")
    if packing and packing_of(head, ""):
        raise _refused(path, "packed twice", "unpack it first")
    for offset, begin, name in FOREIGN:
        if head.startswith(begin, offset):
            raise _refused(path, f"{name}, by its first bytes", "turn it into JSON lines, Parquet or text in UTF-8")
    if end in TABLES:
        raise _refused(path, f"{TABLES[end]}, whose columns are no documents", "turn it into JSON lines or Parquet")
    head = head.removeprefix(BOM).lstrip()
    if end in JSONL:
        _refuse_unless_lines(path, head)
        return "jsonl"
    if b"\0" in head:
        raise _refused(path, "binary data, by its zero bytes", "turn it into JSON lines, Parquet or text in UTF-8")
    if not _begins_with_object(head):
        if end == "" or end[1:].isdigit():
            _refuse_array(path, head)
        return "text"
    if end == "" or end[1:].isdigit():
        return "jsonl"
    raise _refused(path, f"JSON lines by its content, but named {end}", "say which it is")


def _refuse_unless_lines(path: str, head: bytes) -> None:
    _refuse_array(path, head)
    if b"\0" in head and not any(map(_is_object, head.split(b"\n")[:-1])):
        raise _refused(path, "binary data, by its zero bytes", "turn it into JSON lines, Parquet or text in UTF-8")


def _refuse_array(path: str, head: bytes) -> None:
    """Refuse a JSON array, and JSON that is spread over several lines."""
    line = head.partition(b"\n")[0].rstrip()
    value = _parsed(line)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        raise _refused(path, "a JSON array", "write one object a line")
    if value is not None or not line.startswith((b"{", b"[")):
        return
    whole = isinstance(_parsed(head), dict | list)
    if line.startswith(b"[") and (whole or line == b"[" or line.startswith((b"[{", b"[ {"))):
        raise _refused(path, "a JSON array", "write one object a line")
    open_end = line.endswith((b"{", b"[", b",")) and not any(map(_is_object, head.split(b"\n")))
    if line.startswith(b"{") and (whole or line == b"{" or open_end):
        raise _refused(path, "JSON spread over several lines", "write one object a line")


def _begins_with_object(head: bytes) -> bool:
    """Whether the first line is a JSON object, as far as it is there."""
    line, newline, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    return _is_object(line) or (not newline and len(head) >= HEAD_BYTES // 2 and line.startswith((b'{"', b'{ "')))


def _is_object(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(_parsed(line), dict)


def _parsed(text: bytes):
    try:
        return read_json(text)
    except ValueError:
        return None


def _refused(path: str, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"--input {path}: {what}; {remedy}, or give --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]} to overrule this")
