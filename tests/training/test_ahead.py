"""The rows of the next step are read while this one runs, and are always those of the step that comes. Shown by the order of events."""

import threading

import numpy as np
import pytest

from megatron_ngpt.data.batches import BatchSource, Rows
from megatron_ngpt.errors import DataError, RankError
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.training.ahead import RowReader
from tests.on_ranks import on_ranks
from tests.training.test_loop import begin, run

pytestmark = pytest.mark.usefixtures("in_repository")
LONG = 20  # seconds after which something that should happen has not


class Source:
    """Rows that hold their step; `bad` steps cannot be read."""

    global_batch = 1

    def __init__(self, bad=()):
        self.bad, self.read = bad, []
        self.asked = [threading.Event() for _ in range(9)]

    def rows(self, step, start, stop):
        self.read.append(step)
        self.asked[step].set()
        if step in self.bad:
            raise DataError("token 9 is outside the vocabulary")
        return Rows(np.full((stop - start, 3), step, np.int32), [], np.zeros(stop - start, np.int64))


def reader(last=8):
    return RowReader(RankGrid(), last, documents=False)


def test_the_next_step_is_read_before_it_is_asked_for_and_none_after_the_last():
    source, rows = Source(), reader(last=3)
    for step in (1, 2, 3):
        assert rows.next(source, step).tokens[0, 0] == step
        assert step == 3 or source.asked[step + 1].wait(LONG)
    assert source.read == [1, 2, 3]


def test_after_a_rollback_other_rows_are_read():
    source, other, rows = Source(), Source(), reader()
    rows.next(source, 5)
    assert rows.next(other, 6).tokens[0, 0] == 6 and other.read[0] == 6, "the same step of another source"
    assert rows.next(other, 3).tokens[0, 0] == 3, "an earlier step"


def test_what_cannot_be_read_is_an_error_of_its_own_step():
    source, rows = Source(bad=[2]), reader()
    rows.next(source, 1)
    assert source.asked[2].wait(LONG)
    with pytest.raises(RankError, match=r"^step 2: token 9 is outside the vocabulary$"):
        rows.next(source, 2)


def overlapped(recipe, options):
    """What the person read, how the run ended, and for each step but the last whether the next one's rows were asked for within it."""
    asked, read, found = [threading.Event() for _ in range(5)], BatchSource.rows, []

    def rows(self, step, *bounds):
        asked[step].set()
        return read(self, step, *bounds)

    def strike(engine, micro):
        if micro == 3 and engine.number < 4:
            found.append(asked[engine.number + 1].wait(LONG))

    BatchSource.rows = rows
    return *run(recipe, options, strike), found


def test_a_run_reads_ahead(corpus, tmp_path):
    recipe, options = begin(corpus, tmp_path, "--training.steps=4", "--checkpoint.every=0")
    [(_, ended, found)] = on_ranks(1, overlapped, recipe, options)
    assert ended == "well" and found == [True] * 3
