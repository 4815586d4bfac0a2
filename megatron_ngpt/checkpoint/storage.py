"""Tensor files for `torch.distributed.checkpoint`, with a checksum for every chunk: made as it is written, checked as it is read.

Where everything lies is JSON (`stored.py`), not that library's pickle, and chunks are unpacked by `torch.load` with `weights_only`: a
checkpoint is data, whoever made it.
"""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.futures import Future

from megatron_ngpt.checkpoint.files import remove
from megatron_ngpt.checkpoint.pieces import divided
from megatron_ngpt.checkpoint.seal import TensorFile, check_chunk, read_checksums
from megatron_ngpt.checkpoint.stored import StoredChunk, packed, read_tensors_list, told_piece, write_tensors_list
from megatron_ngpt.errors import DamagedError, NotFiniteError

READERS = 4  # threads of a rank that read, check and unpack chunks


class Writer(FileSystemWriter):
    """Writes one directory, a file a rank, and then lets `finish` (on the coordinator) close and publish it.

    Args:
        begin: called on the coordinator before anything is written or removed; may refuse.
        close: is given every file.
        chunk_bytes: most of a chunk.
    """

    def __init__(self, directory: Path, begin: Callable[[], None], close: Callable[[list[TensorFile]], None], chunk_bytes: int):
        super().__init__(directory)
        self._begin, self._close, self._chunk_bytes = begin, close, chunk_bytes

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Overrides a method that makes the directory, on every rank at any time: the coordinator does, for all."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator, when every rank has come and none writes yet."""
        self._begin()
        remove(self.path)
        self.path.mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[TensorFile]]:
        """Write this rank's file, if it has anything to write. Overrides a method that lets `torch.save` write to the file itself, which on
        a full disk fails with an error of the zip format's and not the disk's."""
        if not plan.items:
            return _done([])
        name, written, pieces, not_finite = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}", [], [], set()
        with open(self.path / name, "wb") as file:
            for item in plan.items:
                view, rows, first = planner.lookup_object(item.index), [], len(written)
                for part in divided(view, item.index.offset[0], self._chunk_bytes):
                    written.append(_write_chunk(file, part))
                    rows.append(len(part))
                    if not is_finite(part):
                        not_finite.add(item.index.fqn)
                pieces.append(told_piece(item.index, first, list(view.shape[1:]), rows))
            file.flush()
            os.fsync(file.fileno())
            return _done([TensorFile(name, file.tell(), packed(written), packed(pieces), sorted(not_finite))])

    def finish(self, metadata: Metadata, results: list[list[TensorFile]]) -> None:
        """On the coordinator, when every rank has written. Overrides a method that writes a pickle."""
        written = [file for of_rank in results for file in of_rank]
        write_tensors_list(self.path, {name: stored.size for name, stored in metadata.state_dict_metadata.items()}, written)
        self._close(written)


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is infinite or NaN."""
    return bool(torch.isfinite(values).all())


def _write_chunk(file: BinaryIO, part: torch.Tensor) -> tuple[int, int, str]:
    """(offset, bytes, sha256) of what was written."""
    content = io.BytesIO()
    torch.save(part.clone(), content)  # a view alone would be saved with all that it is a view of
    at = file.tell()
    file.write(content.getbuffer())
    return at, content.tell(), hashlib.sha256(content.getbuffer()).hexdigest()


class Reader(FileSystemReader):
    """Reads the chunks that a plan touches, each once, and accepts none that has not its checksum.

    Attributes:
        bytes_read: of tensor files, so far.
    """

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.bytes_read = 0
        self._metadata = read_tensors_list(directory, read_checksums(directory))

    def read_metadata(self, *_, **__) -> Metadata:
        """What `tensors.json` says. Overrides a method that unpickles a file."""
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors. Raises DamagedError."""
        wanted: dict[str, dict[int, list[ReadItem]]] = {}
        for item in plan.items:
            stored = self._stored(item)
            wanted.setdefault(stored.file, {}).setdefault(stored.offset, []).append(item)
        with ThreadPoolExecutor(READERS) as pool:
            for name, chunks in sorted(wanted.items()):
                try:
                    with open(self.path / name, "rb") as file:
                        read = partial(self._read_chunk, file.fileno(), planner)
                        self.bytes_read += sum(pool.map(read, [items for _, items in sorted(chunks.items())]))
                except FileNotFoundError:
                    raise DamagedError(f"{self.path} is not complete: {name} is missing") from None
        return _done(None)

    def _stored(self, item: ReadItem) -> StoredChunk:
        return self.storage_data[item.storage_index.fqn][item.storage_index.index]

    def _read_chunk(self, file: int, planner: LoadPlanner, items: list[ReadItem]) -> int:
        """Check a chunk, and copy what the items want of it; returns its bytes."""
        stored = self._stored(items[0])
        content = os.pread(file, stored.bytes, stored.offset)
        check_chunk(self.path / stored.file, stored.offset, content, stored.sha256)
        chunk = _unpacked(content)
        if chunk is None or chunk.shape != stored.shape:
            wanted = f"no tensor of shape {list(stored.shape)} at byte {stored.offset}"
            raise DamagedError(f"{self.path} is damaged: {stored.file} holds {wanted}")
        _check_finite(self.path, items[0].storage_index.fqn, stored.file, stored.offset, chunk)
        for item in items:
            target = planner.resolve_tensor(item)
            region = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
            target.copy_(chunk[region])
            planner.commit_tensor(item, target)
        return len(content)


def finite_only(directory: Path) -> Callable[[str, int, bytes], None]:
    """For `verify`: raises DamagedError if a chunk (its file, offset and content) of the checkpoint holds no tensor, NotFiniteError if it
    holds what is not finite."""
    names: dict[tuple[str, int], str] = {}

    def examine(file: str, offset: int, content: bytes) -> None:
        if not names:
            stored = read_tensors_list(directory, read_checksums(directory)).storage_data
            names.update({(chunk.file, chunk.offset): name for name, chunks in stored.items() for chunk in chunks})
        chunk = _unpacked(content)
        if chunk is None:
            raise DamagedError(f"{directory} is damaged: {file} holds no tensor at byte {offset}")
        _check_finite(directory, names.get((file, offset), "no tensor"), file, offset, chunk)

    return examine


def _check_finite(directory: Path, name: str, file: str, offset: int, chunk: torch.Tensor) -> None:
    if not is_finite(chunk):
        raise NotFiniteError(f"{directory} holds values of {name} that are not finite: {file} from byte {offset} on")


def _unpacked(content: bytes) -> torch.Tensor | None:
    """The fp32 tensor in a chunk; None for anything else, which is never run."""
    try:
        chunk = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # there are as many kinds as there are ways to be no such file
        return None
    return chunk if isinstance(chunk, torch.Tensor) and chunk.dtype == torch.float32 else None


def _done(value) -> Future:
    future = Future()
    future.set_result(value)
    return future
