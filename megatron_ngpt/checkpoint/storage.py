"""`torch.distributed.checkpoint`'s files, with a checksum for every chunk: made as it is written, checked as it is read."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_ngpt.checkpoint.files import remove
from megatron_ngpt.checkpoint.seal import Chunks, check_chunk, read_checksums
from megatron_ngpt.errors import DamagedError

READERS = 4  # threads of a rank that read, check and unpack chunks


@dataclass(frozen=True)
class CheckedResult(WriteResult):
    """Where a rank wrote a chunk, and the checksum of what it wrote."""

    sha256: str


class Writer(FileSystemWriter):
    """Writes one directory, a file a rank, and then lets `finish` (on the coordinator) close and publish it."""

    def __init__(self, directory: Path, close: Callable[[dict[str, Chunks]], None]):
        super().__init__(directory)
        self._close = close

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Overrides a method that makes the directory, on every rank at any time: the coordinator does, for all."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator, when every rank has come and none writes yet."""
        remove(self.path)
        self.path.mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[CheckedResult]]:
        """Write this rank's file. Overrides a method that lets `torch.save` write to the file itself, which on a full disk fails with an
        error of the zip format's and not the disk's."""
        if not plan.items:
            return _done([])
        name, results = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}", []
        with open(self.path / name, "wb") as file:
            for item in plan.items:
                content = io.BytesIO()
                torch.save(planner.resolve_data(item).clone(), content)  # a view alone would be saved with all that it is a view of
                place = _StorageInfo(name, file.tell(), content.tell())
                file.write(content.getbuffer())
                results.append(CheckedResult(item.index, place.length, place, hashlib.sha256(content.getbuffer()).hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[CheckedResult]]) -> None:
        """On the coordinator, when every rank has written."""
        super().finish(metadata, results)
        checksums: dict[str, Chunks] = {}
        for result in (result for of_rank in results for result in of_rank):
            stored = result.storage_data
            checksums.setdefault(stored.relative_path, []).append((stored.offset, stored.length, result.sha256))
        self._close({name: sorted(chunks) for name, chunks in checksums.items()})


class Reader(FileSystemReader):
    """Reads the chunks that a plan touches, each once, and accepts none that has not its checksum.

    Attributes:
        bytes_read: of tensor files, so far.
    """

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.bytes_read = 0
        listed = read_checksums(directory)
        self._sha256 = {(name, offset): sha256 for name, chunks in listed.items() for offset, _, sha256 in chunks}

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors. Raises DamagedError."""
        wanted: dict[str, dict[int, list[ReadItem]]] = {}
        for item in plan.items:
            stored = self.storage_data[item.storage_index]
            wanted.setdefault(stored.relative_path, {}).setdefault(stored.offset, []).append(item)
        with ThreadPoolExecutor(READERS) as pool:
            for name, chunks in sorted(wanted.items()):
                try:
                    with open(self.path / name, "rb") as file:
                        read = partial(self._read_chunk, file.fileno(), planner)
                        self.bytes_read += sum(pool.map(read, [items for _, items in sorted(chunks.items())]))
                except FileNotFoundError:
                    raise DamagedError(f"{self.path} is not complete: {name} is missing") from None
        return _done(None)

    def _read_chunk(self, file: int, planner: LoadPlanner, items: list[ReadItem]) -> int:
        """Check a chunk, and copy what the items want of it; returns its bytes."""
        stored = self.storage_data[items[0].storage_index]
        content = os.pread(file, stored.length, stored.offset)
        check_chunk(self.path / stored.relative_path, stored.offset, content, self._sha256[stored.relative_path, stored.offset])
        chunk = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for item in items:
            target = planner.resolve_tensor(item)
            region = tuple(slice(at, at + size) for at, size in zip(item.storage_offsets, item.lengths, strict=True))
            target.copy_(chunk[region])
            planner.commit_tensor(item, target)
        return len(content)


def _done(value) -> Future:
    future = Future()
    future.set_result(value)
    return future
