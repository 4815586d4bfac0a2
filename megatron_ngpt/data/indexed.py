"""Reading `PREFIX.bin` + `PREFIX.idx` pairs in Megatron's MMIDIDX layout, version 1.

The index is little-endian: magic, uint64 version, uint8 dtype code, uint64 sequences, uint64 document indices, int32 lengths
[sequences], int64 byte offsets [sequences], int64 document indices. The tokens lie end to end in the .bin. Opening reads the 34
bytes of the header and compares file sizes, whatever the size of the dataset; everything else is mapped when first touched.
"""

import errno
import mmap
import resource
import struct
from pathlib import Path

import numpy as np

from megatron_ngpt.errors import DataError
from megatron_ngpt.foreign import read_json

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {code: np.dtype(name) for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOAT_CODES = (6, 7)
SMALL_VOCABULARY = 65500
WORDS = "document_words"  # in PREFIX.meta.json, where they were counted: words of each document's raw text


def token_dtype(vocabulary: int) -> np.dtype:
    """The dtype that a vocabulary of this many entries is stored in: uint16 below 65,500 entries, else int32."""
    return np.dtype("<u2" if vocabulary < SMALL_VOCABULARY else "<i4")


def pair_paths(prefix: str) -> tuple[Path, Path, Path]:
    """The paths of a dataset's tokens, index and description: (.bin, .idx, .meta.json)."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.meta.json")


def map_bytes(path: Path) -> mmap.mmap | bytes:
    """The file's bytes, mapped read-only; an array made over them keeps the mapping alive for as long as it lives.

    Each mapping holds a file descriptor: where hundreds of shards need more than the soft limit, it is raised to the hard one.
    Raises DataError if that is not enough either.
    """
    try:
        return _map(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _map(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; raise the limit of {hard} (ulimit -n), or merge the shards") from None


def _map(path: Path) -> mmap.mmap | bytes:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""


def read_meta(prefix: str) -> dict | None:
    """The content of `PREFIX.meta.json`, or None for a foreign pair without one. Raises DataError if it is no JSON object."""
    path = pair_paths(prefix)[2]
    try:
        meta = read_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); remove it to read the pair as a foreign one") from None
    if not isinstance(meta, dict):
        raise DataError(f"{path}: holds {type(meta).__name__}, not an object; remove it to read the pair as a foreign one")
    return meta


class IndexedDataset:
    """One dataset on disk: `tokens` token ids in `documents` documents, read through memory maps.

    Maps are opened when first used and left out of pickles, so an object may be handed to forked and spawned processes. Arrays
    returned are views of the mapping and stay valid after the dataset object is gone.
    Raises DataError for a missing, foreign or damaged pair.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.bin_path, self.idx_path, _ = pair_paths(prefix)
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise DataError(f"{path}: no such file; a dataset is a pair PREFIX.bin + PREFIX.idx, named by PREFIX alone")
        self.dtype, self.sequences, self._indices = self._read_header()
        self.documents = self._indices - 1
        self._index: tuple | None = None
        self._tape: np.ndarray | None = None
        self.tokens = self._check_sizes()

    def _read_header(self) -> tuple[np.dtype, int, int]:
        with open(self.idx_path, "rb") as file:
            raw = file.read(HEADER.size)
        if len(raw) < HEADER.size or not raw.startswith(MAGIC):
            raise DataError(f"{self.idx_path}: is not an MMIDIDX index (it starts with {raw[:9]!r}, not {MAGIC!r})")
        _, version, code, sequences, indices = HEADER.unpack(raw)
        if version != VERSION:
            raise DataError(f"{self.idx_path}: version {version}; only version {VERSION} is known")
        if code not in DTYPES:
            kind = "a floating-point dtype, which holds no token ids" if code in FLOAT_CODES else "unknown"
            raise DataError(f"{self.idx_path}: dtype code {code} is {kind}; valid: {sorted(DTYPES)}")
        if indices < 1:
            raise DataError(f"{self.idx_path}: says 0 document indices; there is always at least the closing one")
        return DTYPES[code], sequences, indices

    def _check_sizes(self) -> int:
        expected = HEADER.size + 12 * self.sequences + 8 * self._indices
        size = self.idx_path.stat().st_size
        if size != expected:
            raise DataError(f"{self.idx_path}: {size} bytes, but its counts ({self.sequences} sequences, {self._indices} "
                            f"document indices) need {expected}; the file is damaged or unfinished")
        lengths, offsets, indices = self.index()
        if int(indices[0]) != 0 or int(indices[-1]) != self.sequences:
            raise DataError(f"{self.idx_path}: document indices run from {indices[0]} to {indices[-1]}, "
                            f"not from 0 to the {self.sequences} sequences")
        end = int(offsets[-1]) + int(lengths[-1]) * self.dtype.itemsize if self.sequences else 0
        size = self.bin_path.stat().st_size
        if size != end:
            raise DataError(f"{self.bin_path}: {size} bytes, but {self.idx_path} describes {end}; "
                            f"the file is {'truncated' if size < end else 'too long'} or belongs to another index")
        return end // self.dtype.itemsize

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_index": None, "_tape": None}

    def index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views of the index: lengths in tokens int32 [sequences], byte offsets int64 [sequences], document indices int64."""
        if self._index is None:
            raw, size = map_bytes(self.idx_path), HEADER.size
            self._index = (
                np.frombuffer(raw, "<i4", self.sequences, size),
                np.frombuffer(raw, "<i8", self.sequences, size + 4 * self.sequences),
                np.frombuffer(raw, "<i8", self._indices, size + 12 * self.sequences),
            )
        return self._index

    @property
    def tape(self) -> np.ndarray:
        """All tokens end to end: a view of the .bin, [tokens], in the dtype it is stored in."""
        if self._tape is None:
            self._tape = np.frombuffer(map_bytes(self.bin_path), self.dtype, self.tokens)
        return self._tape

    def starts(self, documents: np.ndarray) -> np.ndarray:
        """Where each of these documents begins on the tape, int64; document number `documents` begins where the tape ends."""
        _, offsets, indices = self.index()
        sequences = indices[documents]
        inside = sequences < self.sequences
        if not self.sequences:
            return np.zeros_like(sequences)
        return np.where(inside, offsets[np.where(inside, sequences, 0)] // self.dtype.itemsize, self.tokens)

    def document_at(self, positions: np.ndarray) -> np.ndarray:
        """The document that each tape position (int64) lies in, found by bisection: a few look-ups, no scan of the index."""
        low = np.zeros_like(positions)
        high = np.full_like(positions, self.documents)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            at_or_after = self.starts(middle) <= positions
            low, high = np.where(at_or_after, middle, low), np.where(at_or_after, high, middle)
        return low

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, a view of the tape."""
        if not 0 <= number < self.documents:
            raise IndexError(f"document {number} of {self.documents}")
        begin, end = self.starts(np.array([number, number + 1]))
        return self.tape[begin:end]
