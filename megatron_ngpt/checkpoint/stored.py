"""`tensors.json`: which chunk of which file holds which part of which tensor.

    {"shapes": {"weights/model.embed_tokens.weight": [V, D], ...},
     "pieces": {"__0_0.distcp": [
        {"tensor": "weights/model.embed_tokens.weight", "chunk": 12, "offset": [0, 0], "columns": [D], "rows": [256, 256, 88]}, ...], ...}}

A piece is a box of the tensor that one rank wrote. It starts at `offset`, and is cut between rows: `rows` of them in each of the file's
chunks from number `chunk` on, as `checksums.json` counts them; `columns` is empty for a tensor of one dimension. So a chunk costs one
number here, each rank can write its own part, and reading this runs no code, as the pickle of `torch.distributed.checkpoint` could.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata

from megatron_ngpt.checkpoint.files import write_bytes
from megatron_ngpt.checkpoint.seal import Chunks, TensorFile, joined
from megatron_ngpt.errors import DamagedError

TENSORS = "tensors.json"
FP32 = TensorProperties(torch.float32)


class StoredChunk(NamedTuple):
    """Where a chunk lies, what it must hash to, and the shape of the fp32 tensor in it."""

    file: str
    offset: int
    bytes: int
    sha256: str
    shape: torch.Size


def told_piece(index: MetadataIndex, chunk: int, columns: list[int], rows: list[int]) -> dict:
    """What `tensors.json` says of a piece."""
    return {"tensor": index.fqn, "chunk": chunk, "offset": list(index.offset), "columns": columns, "rows": rows}


def packed(value: list | dict) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def write_tensors_list(directory: Path, shapes: dict[str, torch.Size], written: list[TensorFile]) -> None:
    """Write `tensors.json`, durably."""
    sizes = packed({name: list(shape) for name, shape in sorted(shapes.items())})
    pieces = joined((file.name, file.pieces) for file in written)
    write_bytes(directory / TENSORS, joined([("shapes", sizes), ("pieces", pieces)]))


def read_tensors_list(directory: Path, checksums: dict[str, Chunks]) -> Metadata:
    """`tensors.json` in the words of `torch.distributed.checkpoint`; `storage_data` has a `StoredChunk` for each of a tensor's chunks, in
    their order (by which a plan's indices count them), by the tensor's name.

    Raises:
        DamagedError: it is not as `write_tensors_list` writes it, or speaks of chunks that `checksums` has not.
    """
    try:
        listed = json.loads((directory / TENSORS).read_text("utf-8"))
        boxes: dict[str, list[ChunkStorageMetadata]] = {name: [] for name in listed["shapes"]}
        places: dict[str, list[StoredChunk]] = {name: [] for name in listed["shapes"]}
        for file, pieces in listed["pieces"].items():
            for piece in pieces:
                name, (row, *column), columns = piece["tensor"], piece["offset"], piece["columns"]
                chunks = checksums[file][piece["chunk"] : piece["chunk"] + len(piece["rows"])]
                for rows, (at, size, sha256) in zip(piece["rows"], chunks, strict=True):
                    shape = torch.Size((rows, *columns))
                    boxes[name].append(ChunkStorageMetadata(torch.Size((row, *column)), shape))
                    places[name].append(StoredChunk(file, at, size, sha256, shape))
                    row += rows
        tensors = {name: TensorStorageMetadata(FP32, torch.Size(shape), boxes[name]) for name, shape in listed["shapes"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{directory} is damaged: {TENSORS} cannot be read: {type(error).__name__}: {error}") from None
    return Metadata(tensors, storage_data=places)
