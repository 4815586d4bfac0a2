"""Reading the text column of Parquet files."""

from collections.abc import Iterator

import pyarrow
import pyarrow.parquet as parquet

from megatron_ngpt.errors import DataError


def parquet_chunks(number: int, source, text_key: str, position: int, size: int) -> Iterator:
    """Chunks of rows from row `position` on, each the column as a binary array. Raises DataError for a damaged file."""
    from data_tools.chunks import Chunk
    try:
        with parquet.ParquetFile(source.path) as file:
            _check_column(file, source.path, text_key)
            for start, column in _columns(file, text_key, position, size):
                end = start + len(column)
                consumed = source.size * end // max(1, file.metadata.num_rows)
                yield Chunk(number, source, start, end, column, consumed)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source.path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _check_column(file: parquet.ParquetFile, path: str, text_key: str) -> None:
    if text_key not in file.schema_arrow.names:
        raise DataError(f"--text_key {text_key}: {path} has no such column; it has {', '.join(file.schema_arrow.names)}")
    kind = file.schema_arrow.field(text_key).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_dictionary(kind)):
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
            for batch in file.iter_batches(max(1, size // per_row), row_groups=[group], columns=[text_key]):
                skipped = min(max(position - start, 0), batch.num_rows)
                if skipped < batch.num_rows:
                    values = batch.column(0).slice(skipped).cast(pyarrow.large_string())
                    yield start + skipped, values.cast(pyarrow.large_binary())
                start += batch.num_rows
        first += rows
