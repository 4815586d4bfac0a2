"""The rows of the next step, read while this one runs."""

import threading
from collections.abc import Callable

from megatron_ngpt.data.batches import BatchSource, Rows
from megatron_ngpt.errors import DataError, RankError
from megatron_ngpt.parallel.grid import RankGrid


class RowReader:
    """Reads this rank's rows of global batches; of a run's steps, one ahead.

    Rows are a function of source and step, so what was read for a step that does not come next (after a rollback, say) is dropped.

    Args:
        last: the step after which nothing is read ahead.
        documents: number the documents in the rows too.
    """

    def __init__(self, grid: RankGrid, last: int, documents: bool):
        self._grid, self._last, self._documents = grid, last, documents
        self._coming: _Reading | None = None

    def next(self, source: BatchSource, step: int) -> Rows:
        """The rows of `step`; those of the step after it begin to be read, in a thread. Raises as `now`, and of no step but this one."""
        coming, self._coming = self._coming, None
        if coming is None or (coming.source, coming.step) != (source, step):
            coming = _Reading(self.now, source, step)
        rows = coming.result()
        if step < self._last:
            self._coming = _Reading(self.now, source, step + 1)
        return rows

    def now(self, source: BatchSource, step: int) -> Rows:
        """The rows of any step. Raises RankError, which names the step, for an id past the vocabulary."""
        own = self._grid.readers.share(source.global_batch)
        try:
            rows = source.rows(step, own.start, own.stop)
        except DataError as error:
            raise RankError(f"step {step}: {error}") from error
        if self._documents:
            _ = rows.documents  # made when first asked for
        return rows


class _Reading(threading.Thread):
    """A step that is being read. No future: of a rank that waits for one the watchdog would think that it waits for others."""

    def __init__(self, read: Callable[[BatchSource, int], Rows], source: BatchSource, step: int):
        super().__init__(name=f"rows of step {step}", daemon=True)
        self._read, self.source, self.step = read, source, step
        self._rows: Rows | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._rows = self._read(self.source, self.step)
        except Exception as error:
            self._error = error

    def result(self) -> Rows:
        """The rows, once they are read; raises what reading did."""
        self.join()
        if self._error:
            raise self._error
        return self._rows
