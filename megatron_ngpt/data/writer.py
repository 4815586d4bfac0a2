"""Writing MMIDIDX pairs: documents are appended to temporary files, and the dataset's names appear when it is complete."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, pair_paths
from megatron_ngpt.errors import DataError

READ_BYTES = 1 << 20
INDEX_BLOCK = 1 << 17           # entries of the index that are made at a time


class IndexedWriter:
    """Appends documents, each one sequence, to `BASE.bin.tmp` and `BASE.lengths.tmp`; `finish` gives them their names.

    Memory does not grow with the dataset. `documents` and `bytes` say how much was written; a writer made with the values of an
    earlier moment cuts the files back to it and goes on from there.
    """

    def __init__(self, base: str, dtype: np.dtype, documents: int = 0, size: int = 0):
        self.dtype = np.dtype(dtype)
        self.documents, self.bytes = documents, size
        self._hash = hashlib.sha256()
        self._bin_path, self._lengths_path = Path(f"{base}.bin.tmp"), Path(f"{base}.lengths.tmp")
        self._bin_path.parent.mkdir(parents=True, exist_ok=True)
        self._bin = self._open(self._bin_path, size)
        self._lengths = self._open(self._lengths_path, 4 * documents)
        self._rehash(size)

    @staticmethod
    def _open(path: Path, size: int):
        file = open(path, "r+b" if size else "w+b")     # noqa: SIM115 (closed by `close`)
        file.truncate(size)
        file.seek(size)
        return file

    def _rehash(self, size: int) -> None:
        self._bin.seek(0)
        while self._bin.tell() < size:
            self._hash.update(self._bin.read(min(READ_BYTES, size - self._bin.tell())))

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their `tokens` end to end, [sum of lengths], and each one's length in tokens, [documents].

        Raises DataError for a token that the dataset's dtype cannot hold.
        """
        if len(tokens) and tokens.dtype != self.dtype:
            low, high, limits = int(tokens.min()), int(tokens.max()), np.iinfo(self.dtype)
            if low < limits.min or high > limits.max:
                raise DataError(f"token {high if high > limits.max else low} does not fit in {self.dtype.name} "
                                f"({limits.min} to {limits.max}); write the dataset with a wider dtype")
        raw = np.ascontiguousarray(tokens, self.dtype).view(np.uint8).data
        self._bin.write(raw)
        self._hash.update(raw)
        self._lengths.write(np.ascontiguousarray(lengths, "<i4").view(np.uint8).data)
        self.bytes += len(raw)
        self.documents += len(lengths)

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return self.bytes // self.dtype.itemsize

    def sync(self) -> None:
        """Put everything written so far on disk."""
        for file in (self._bin, self._lengths):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files and leave them as they are, so that another writer may go on from them."""
        self._bin.close()
        self._lengths.close()

    def discard(self) -> None:
        """Close and remove the temporary files."""
        self.close()
        for path in (self._bin_path, self._lengths_path):
            path.unlink(missing_ok=True)

    def finish(self, prefix: str, meta: dict) -> dict:
        """Write the index and `PREFIX.meta.json` and rename; the .idx comes last, so a dataset that has one is complete.

        `meta` is extended by documents, tokens, dtype and both files' sha256, and returned.
        """
        self.sync()
        bin_path, idx_path, meta_path = pair_paths(prefix)
        bin_path.parent.mkdir(parents=True, exist_ok=True)
        idx_temporary = Path(f"{idx_path}.tmp")
        index_hash = hashlib.sha256()
        with open(idx_temporary, "wb") as file:
            for block in self._index_blocks():
                file.write(block)
                index_hash.update(block)
            file.flush()
            os.fsync(file.fileno())
        self.close()
        counts = {"documents": self.documents, "tokens": self.tokens, "dtype": self.dtype.name}
        meta = meta | counts | {"bin_sha256": self._hash.hexdigest(), "idx_sha256": index_hash.hexdigest()}
        idx_path.unlink(missing_ok=True)
        os.replace(self._bin_path, bin_path)
        write_text(meta_path, json.dumps(meta, indent=2) + "\n")
        os.replace(idx_temporary, idx_path)
        self._lengths_path.unlink()
        return meta

    def _index_blocks(self) -> Iterator[bytes]:
        yield HEADER.pack(MAGIC, VERSION, DTYPE_CODES[self.dtype], self.documents, self.documents + 1)
        for block in self._length_blocks():
            yield block.tobytes()
        offset = 0
        for block in self._length_blocks():
            ends = offset + np.cumsum(block.astype("<i8") * self.dtype.itemsize)
            yield np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes()
            offset = int(ends[-1])
        for start in range(0, self.documents + 1, INDEX_BLOCK):
            yield np.arange(start, min(start + INDEX_BLOCK, self.documents + 1), dtype="<i8").tobytes()

    def _length_blocks(self) -> Iterator[np.ndarray]:
        self._lengths.seek(0)
        while raw := self._lengths.read(4 * INDEX_BLOCK):
            yield np.frombuffer(raw, "<i4")


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
