"""From a chunk to the texts of its documents, and what is wrong with those that have none."""

import reprlib
from dataclasses import dataclass, field

from data_tools.chunks import Chunk
from data_tools.sources import BOM
from megatron_ngpt.foreign import read_json, what_is_wrong


@dataclass
class Documents:
    """The texts of a chunk in order, the `lines` it had, and for each malformed one (line within the chunk, what is wrong)."""

    texts: list[str] = field(default_factory=list)
    lines: int = 0
    malformed: list[tuple[int, str]] = field(default_factory=list)


def read_documents(chunk: Chunk, text_key: str, split_on: str | None) -> Documents:
    """The documents of a chunk, empty ones too."""
    if chunk.source.kind == "parquet":
        return _rows(chunk.data)
    data = chunk.data
    if data is None:
        with open(chunk.source.path, "rb") as file:
            file.seek(chunk.start)
            data = file.read(chunk.end - chunk.start)
    data = data.removeprefix(BOM) if chunk.start == 0 else data
    if chunk.source.kind == "jsonl":
        return _json_lines(data, text_key)
    pieces = [data] if split_on is None else data.split(split_on.encode())
    if split_on is not None and not pieces[-1]:
        pieces.pop()                    # the chunk ends with a separator
    return _decoded(pieces)


def _json_lines(data: bytes, text_key: str) -> Documents:
    documents = Documents(lines=data.count(b"\n"))
    for number, line in enumerate(_text_lines(data)):
        if line and not line.isspace():
            try:
                documents.texts.append(_text_of(line, text_key))
            except ValueError as error:
                documents.malformed.append((number, what_is_wrong(error)))
    return documents


def _text_lines(data: bytes) -> list:
    """Lines as text, or as bytes if some are not UTF-8, for each to be tried on its own."""
    try:
        return data.decode().split("\n")
    except UnicodeDecodeError:
        return data.split(b"\n")


def _text_of(line: str | bytes, text_key: str) -> str:
    value = read_json(line)
    if not isinstance(value, dict):
        raise ValueError(f"holds {type(value).__name__}, not an object")
    if text_key not in value:
        raise ValueError(f"has no key {text_key!r} (--text_key); its keys: {', '.join(map(reprlib.repr, list(value)[:5]))}")
    text = value[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} holds {type(text).__name__}, not a string")
    text.encode()
    return text


def _decoded(pieces: list[bytes]) -> Documents:
    documents = Documents(lines=len(pieces))
    for number, piece in enumerate(pieces):
        try:
            documents.texts.append(piece.decode())
        except UnicodeDecodeError as error:
            documents.malformed.append((number, what_is_wrong(error)))
    return documents


def _rows(column) -> Documents:
    values = column.to_pylist()
    documents = _decoded([value for value in values if value is not None])
    if len(documents.texts) < len(values):
        places = [row for row, value in enumerate(values) if value is not None]
        wrong = [(places[number], reason) for number, reason in documents.malformed]
        documents.malformed = sorted(wrong + [(row, "null, not a string") for row, value in enumerate(values) if value is None])
    documents.lines = len(values)
    return documents
