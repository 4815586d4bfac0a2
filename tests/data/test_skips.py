"""Which batch a step reads where some are skipped."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_data import numbered_documents, recipe, write_dataset

from megatron_ngpt.data.batches import training_batches
from megatron_ngpt.data.skips import as_ranges, batch_of, count, with_batches


@given(st.lists(st.sets(st.integers(1, 60)), max_size=4))
def test_steps_read_every_batch_that_is_not_skipped_in_order(found):
    skipped = ()
    for batches in found:
        skipped = with_batches(skipped, batches)
    left_out = set().union(*found)
    read = [batch_of(step, skipped) for step in range(1, 61)]
    assert read == [batch for batch in range(1, 121) if batch not in left_out][:60]
    assert count(skipped) == len(left_out) and as_ranges([list(pair) for pair in skipped]) == skipped
    assert all(second[0] > first[1] + 1 for first, second in pairwise(skipped))


def test_a_source_without_some_batches_goes_on_behind_them(tmp_path):
    prefixes = [write_dataset(tmp_path / name, numbered_documents([400])) for name in "ab"]
    source = training_batches(recipe([{"prefix": prefix, "weight": weight} for prefix, weight in zip(prefixes, (1, 2), strict=True)],
                                     global_batch=4))  # fmt: skip
    left = source.after(2, ((4, 5),))
    for step, batch in ((3, 3), (4, 6), (5, 7)):
        whole = source.after(2)
        assert np.array_equal(left.rows(step, 0, 4).tokens, whole.rows(batch, 0, 4).tokens)
        assert left.epochs(step) == whole.epochs(batch) and left.rows_by_source(step) == whole.rows_by_source(batch)
