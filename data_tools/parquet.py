"""Reading the text column of Parquet files, in pieces by what they decode to: an encoded column may stand for any amount of text."""

from collections.abc import Iterator

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from megatron_ngpt.errors import DataError

MOST_ROWS = 1 << 16         # read together, as numbers of distinct values
BUFFER_BYTES = 1 << 20
TEXT = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view())


def read_column(path: str, text_key: str, position: int, size: int) -> Iterator[tuple[int, pyarrow.Array, int]]:
    """(first row, texts as a binary array, rows in the file) of runs of rows from row `position` on, of about `size` bytes at most, but a
    row at least.

    Raises DataError for a damaged file: checksums of pages are compared where the file has them.
    """
    try:
        with _open(path) as file:
            _check_column(file, path, text_key)
        with _open(path, text_key) as file:
            rows = max(1, file.metadata.num_rows)
            for start, column in _columns(file, text_key, position, size):
                yield start, column, rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _open(path: str, text_key: str | None = None) -> parquet.ParquetFile:
    """The file; of column `text_key`, texts that come again are kept once. What an extension type stores is read as that."""
    return parquet.ParquetFile(
        path, read_dictionary=[text_key] if text_key else None, page_checksum_verification=True, arrow_extensions_enabled=False,
        pre_buffer=False, buffer_size=BUFFER_BYTES,
    )


def _check_column(file: parquet.ParquetFile, path: str, text_key: str) -> None:
    names = file.schema_arrow.names
    if text_key not in names:
        raise DataError(f"--text_key {text_key}: {path} has no such column; it has {', '.join(names)}")
    if names.count(text_key) > 1:
        raise DataError(f"--text_key {text_key}: {path} has {names.count(text_key)} columns of this name; keep one")
    kind = file.schema_arrow.field(text_key).type
    kind = kind.storage_type if isinstance(kind, pyarrow.BaseExtensionType) else kind
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if kind not in (*TEXT, pyarrow.null()):
        raise DataError(f"--text_key {text_key}: the column of {path} holds {kind}, not strings")


def _columns(file: parquet.ParquetFile, text_key: str, position: int, size: int) -> Iterator[tuple[int, pyarrow.Array]]:
    """(first row, values) for pieces of the column of about `size` bytes."""
    first = 0
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        rows = described.num_rows
        if first + rows > position:
            per_row = max(1, described.total_byte_size // max(1, rows))
            start = first
            for batch in file.iter_batches(min(MOST_ROWS, max(1, size // per_row)), row_groups=[group], columns=[text_key]):
                skipped = min(max(position - start, 0), batch.num_rows)
                for begin, values in _pieces(batch.column(0).slice(skipped), size):
                    yield start + skipped + begin, values
                start += batch.num_rows
        first += rows


def _pieces(column: pyarrow.Array, size: int) -> Iterator[tuple[int, pyarrow.Array]]:
    """(first row, values) for pieces that hold `size` bytes at most, or a single row."""
    column = column.storage if isinstance(column, pyarrow.ExtensionArray) else column
    encoded = isinstance(column, pyarrow.DictionaryArray)
    column = column if encoded else column.cast(pyarrow.large_binary())
    lengths = compute.binary_length(column.dictionary if encoded else column).cast(pyarrow.int64())
    if encoded:
        lengths = lengths.take(column.indices)
    ends = np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))
    begin = 0
    while begin < len(column):
        passed = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, passed + size, side="right")))
        values = column.slice(begin, end - begin)
        yield begin, (values.dictionary_decode() if encoded else values).cast(pyarrow.large_binary())
        begin = end
