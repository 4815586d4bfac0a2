"""The one rule for malformed input: shown with file and line, and the work stops; or, if asked for, left out and counted."""

import sys

from data_tools.chunks import Chunk
from megatron_ngpt.errors import DataError

SHOWN_PROBLEMS = 5
UNITS = {"jsonl": "line", "parquet": "row", "text": "document"}


def report(chunk: Chunk, malformed: list[tuple[int, str]], lines: int, before: int, skip: bool, remedy: str) -> None:
    """Tell what is malformed in a chunk that `lines` lines of its file lie before; the first few of a run, `before` were found earlier.

    Without `skip` raises DataError, which ends with the `remedy`.
    """
    unit, path = UNITS[chunk.source.kind], chunk.source.path
    shown = malformed[: max(0, SHOWN_PROBLEMS - before)]
    problems = [f"{path}: {unit} {lines + number + 1}: {reason}" for number, reason in shown]
    if not skip:
        raise DataError(*problems, f"{path}: {len(malformed)} malformed so far; {remedy}, or leave such {unit}s out with "
                        "--skip_malformed")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
