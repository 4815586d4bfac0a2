"""The tokens of one dataset entry as a tape: its shards' chosen documents laid end to end, read in windows.

A window may run over the seam of two shards. Shards are joined without copying or scanning anything.
"""

import glob
import hashlib
from dataclasses import dataclass

import numpy as np

from megatron_ngpt.data.indexed import IndexedDataset, pair_paths
from megatron_ngpt.errors import DataError

SAMPLED_PIECES = 16
SAMPLED_BYTES = 4096


def find_prefixes(prefix: str) -> list[str]:
    """The dataset prefixes that a plain prefix or a glob names, sorted. Raises DataError for a glob that matches nothing."""
    if not glob.has_magic(prefix) or pair_paths(prefix)[1].is_file():
        return [prefix]
    found = sorted(path.removesuffix(".idx") for path in glob.glob(f"{prefix.removesuffix('.idx')}.idx"))
    if not found:
        raise DataError(f"{prefix}: matches no .idx file; a glob is matched against the names of index files, without .idx")
    return found


@dataclass(frozen=True)
class Shard:
    """Documents [first, last) of one indexed dataset, which are its tokens [begin, end)."""

    dataset: IndexedDataset
    first: int
    last: int
    begin: int
    end: int


def select_documents(datasets: list[IndexedDataset], first: int, last: int) -> list[Shard]:
    """Documents [first, last) of several datasets laid end to end, as shards; those that hold none are left out."""
    shards, passed = [], 0
    for dataset in datasets:
        low, high = (min(max(bound - passed, 0), dataset.documents) for bound in (first, last))
        passed += dataset.documents
        if low < high:
            begin, end = map(int, dataset.starts(np.array([low, high])))
            shards.append(Shard(dataset, low, high, begin, end))
    return shards


def fingerprint(shard: Shard) -> list:
    """What tells this shard from others, at constant cost: its counts, its range, a hash of pieces spread over its tokens."""
    dataset = shard.dataset
    digest = hashlib.sha256()
    step = max(1, dataset.tokens // SAMPLED_PIECES)
    for start in range(0, dataset.tokens, step):
        digest.update(dataset.tape[start : start + SAMPLED_BYTES // dataset.dtype.itemsize].tobytes())
    return [dataset.tokens, dataset.documents, dataset.dtype.name, shard.first, shard.last, digest.hexdigest()]


class Tape:
    """Windows over shards laid end to end: `tokens` tokens in `documents` documents."""

    def __init__(self, shards: list[Shard]):
        self.shards = shards
        self._seams = np.cumsum([0] + [shard.end - shard.begin for shard in shards])
        self.tokens = int(self._seams[-1])
        self.documents = sum(shard.last - shard.first for shard in shards)
        self.dtype = np.result_type(*(shard.dataset.dtype for shard in shards)) if shards else np.dtype("<i4")

    def read(self, starts: np.ndarray, out: np.ndarray) -> None:
        """Copy the windows that begin at tape positions `starts` into `out`, [windows, length], converting the dtype."""
        length = out.shape[1]
        for row, (shard, position) in enumerate(zip(self._shard_at(starts).tolist(), starts.tolist(), strict=True)):
            filled = 0
            while filled < length:
                piece = self.shards[shard]
                begin = piece.begin + position + filled - int(self._seams[shard])
                taken = min(length - filled, piece.end - begin)
                out[row, filled : filled + taken] = piece.dataset.tape[begin : begin + taken]
                filled += taken
                shard += 1

    def windows(self, starts: np.ndarray, length: int, vocabulary: int) -> np.ndarray:
        """The windows of `length` tokens at `starts` in the tape's own dtype, [windows, length]: none narrowed before it is checked.

        Raises DataError for an id that a vocabulary of this many entries does not have.
        """
        read = np.empty((len(starts), length), self.dtype)
        self.read(starts, read)
        low, high = int(read.min()), int(read.max())
        if low < 0 or high >= vocabulary:
            bad = low if low < 0 else high
            row, column = np.argwhere(read == bad)[0].tolist()
            prefix, document, offset = self.origin(int(starts[row]) + column)
            raise DataError(f"{prefix}: token {bad} at offset {offset} of document {document} is outside the vocabulary of "
                            f"{vocabulary} entries; use the tokenizer that made the dataset")
        return read

    def document_bounds(self) -> np.ndarray:
        """Where each document begins on the tape, and where the last one ends: int64 [documents + 1]."""
        bounds = [np.zeros(1, np.int64)]
        for shard, seam in zip(self.shards, self._seams[:-1], strict=True):
            bounds.append(shard.dataset.starts(np.arange(shard.first + 1, shard.last + 1)) - shard.begin + seam)
        return np.concatenate(bounds)

    def number_documents(self, starts: np.ndarray, length: int) -> np.ndarray:
        """For each token of the windows its document's number within the window, from 0: int32 [windows, length]."""
        begins = np.zeros((len(starts), length), np.int32)
        first = self._shard_at(starts)
        for shard in range(int(first.min()), int(self._shard_at(starts + length - 1).max()) + 1):
            low, high = self._seams[shard], self._seams[shard + 1]
            touched = np.flatnonzero((starts < high) & (starts + length > low))
            if len(touched):
                self._mark_begins(self.shards[shard], int(low), starts[touched], touched, begins)
        begins[:, 0] = 0
        return np.cumsum(begins, axis=1, dtype=np.int32)

    def _mark_begins(self, shard: Shard, seam: int, starts: np.ndarray, rows: np.ndarray, begins: np.ndarray) -> None:
        """Set 1 in `begins` where a document of this shard, whose tokens begin at tape position `seam`, starts in a window."""
        shift = shard.begin - seam
        low = np.maximum(starts + shift, shard.begin)
        high = np.minimum(starts + shift + begins.shape[1], shard.end)
        first, last = shard.dataset.document_at(low), shard.dataset.document_at(high - 1)
        counts = last - first + 1
        row = np.repeat(np.arange(len(rows)), counts)
        documents = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
        columns = shard.dataset.starts(documents) - shift - starts[row]
        inside = columns >= 0
        begins[rows[row[inside]], columns[inside]] = 1

    def origin(self, position: int) -> tuple[str, int, int]:
        """Where a tape position lies: (dataset prefix, document number in it, offset in tokens within the document)."""
        number = int(self._shard_at(np.array([position]))[0])
        shard = self.shards[number]
        place = np.array([shard.begin + position - int(self._seams[number])])
        document = shard.dataset.document_at(place)
        return shard.dataset.prefix, int(document[0]), int(place[0] - shard.dataset.starts(document)[0])

    def _shard_at(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._seams, positions, side="right") - 1
