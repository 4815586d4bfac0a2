"""`metrics.csv`: what `metrics.jsonl` has, as a table for a spreadsheet: a column a number, a row a line."""

import csv
import io

from megatron_ngpt.monitor.logger import Logger, RunInfo
from megatron_ngpt.monitor.metrics import append_whole
from megatron_ngpt.monitor.table import flat


class CsvLogger(Logger):
    """`metrics.csv` in the run directory, cut after the step that the run goes on from.

    A number that no line before it had gets a column at the right end, for which the file is written anew. Where the disk is full, rows
    wait in memory for the next one.
    """

    def __init__(self, run: RunInfo):
        self.path = run.output / "metrics.csv"
        self._waiting: list[dict] = []
        columns, rows = self._read()
        self._write_anew(columns, [row for row in rows if row.get("step", "").isdigit() and int(row["step"]) <= run.start_step])

    def scalars(self, step: int, values: dict) -> None:
        """A row, on the disk when this returns."""
        self._waiting.append({"step": step} | flat(values))
        self._write()

    def close(self) -> None:
        """Write the rows that still wait."""
        self._write()

    def _write(self) -> None:
        new = dict.fromkeys(name for row in self._waiting for name in row if name not in self._columns)
        if new:
            self._write_anew([*self._columns, *new], [*self._read()[1], *self._waiting])
        else:
            with self.path.open("ab", buffering=0) as file:
                append_whole(file, _text(self._columns, self._waiting))
        self._waiting.clear()

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The file's columns and rows, a torn last one left out."""
        if not self.path.is_file():
            return ["step"], []
        whole = self.path.read_bytes().rpartition(b"\n")[0].decode("utf-8", errors="replace")
        reader = csv.DictReader(io.StringIO(whole), restval="")
        return list(reader.fieldnames or ["step"]), list(reader)

    def _write_anew(self, columns: list[str], rows: list[dict]) -> None:
        """The whole file, in one move."""
        new = self.path.with_name(self.path.name + ".new")
        try:
            new.write_bytes(_text(columns, rows, header=True))
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)
        self._columns = columns


def _text(columns: list[str], rows: list[dict], header: bool = False) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()
