"""`tensors.json`: which chunk of which file holds which part of which tensor.

    {"weights/model.embed_tokens.weight": {"shape": [V, D], "pieces": [
        {"file": "__0_0.distcp", "chunk": 12, "offset": [0, 0], "columns": [D], "rows": [256, 256, 88]}, ...]}, ...}

A piece is a box of the tensor that one rank wrote. It starts at `offset`, and is cut between rows: `rows` of them in each of the file's
chunks from number `chunk` on, as `checksums.json` counts them; `columns` is empty for a tensor of one dimension. So a chunk costs one
number here, and reading this runs no code, as the pickle of `torch.distributed.checkpoint` could.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata

from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.checkpoint.seal import Chunks
from megatron_ngpt.errors import DamagedError

TENSORS = "tensors.json"


@dataclass(frozen=True)
class WrittenPiece:
    """Where a rank wrote a piece: chunks of a file from number `chunk` on, with so many rows each, the checksums of all, and whether every
    value is finite."""

    file: str
    chunk: int
    columns: list[int]
    rows: list[int]
    chunks: Chunks
    finite: bool


class StoredChunk(NamedTuple):
    """Where a chunk lies, what it must hash to, and the shape of the fp32 tensor in it."""

    file: str
    offset: int
    bytes: int
    sha256: str
    shape: torch.Size


def write_tensors_list(directory: Path, shapes: dict[str, torch.Size], written: Iterable[tuple[MetadataIndex, WrittenPiece]]) -> None:
    """Write `tensors.json`, durably."""
    tensors = {name: {"shape": list(shape), "pieces": []} for name, shape in sorted(shapes.items())}
    for index, piece in written:
        told = {"file": piece.file, "chunk": piece.chunk, "offset": list(index.offset), "columns": piece.columns, "rows": piece.rows}
        tensors[index.fqn]["pieces"].append(told)
    write_text(directory / TENSORS, json.dumps(tensors, separators=(",", ":")))


def read_tensors_list(directory: Path, checksums: dict[str, Chunks]) -> Metadata:
    """`tensors.json` in the words of `torch.distributed.checkpoint`; `storage_data` has a `StoredChunk` for each of a tensor's chunks, in
    their order (by which a plan's indices count them), by the tensor's name.

    Raises:
        DamagedError: it is not as `write_tensors_list` writes it, or speaks of chunks that `checksums` has not.
    """
    properties, tensors, places = TensorProperties(torch.float32), {}, {}
    try:
        for name, tensor in json.loads((directory / TENSORS).read_text("utf-8")).items():
            found, places[name] = [], []
            for piece in tensor["pieces"]:
                file, (row, *column), columns = piece["file"], piece["offset"], piece["columns"]
                chunks = checksums[file][piece["chunk"] : piece["chunk"] + len(piece["rows"])]
                for rows, (at, size, sha256) in zip(piece["rows"], chunks, strict=True):
                    shape = torch.Size((rows, *columns))
                    found.append(ChunkStorageMetadata(torch.Size((row, *column)), shape))
                    places[name].append(StoredChunk(file, at, size, sha256, shape))
                    row += rows
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{directory} is damaged: {TENSORS} cannot be read: {type(error).__name__}: {error}") from None
    return Metadata(tensors, storage_data=places)
