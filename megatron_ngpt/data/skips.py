"""Batches that a run leaves out, and so which batch a step reads: batches are numbered as steps are where none is skipped."""

from collections.abc import Iterable, Sequence

Ranges = tuple[tuple[int, int], ...]  # first and last batch of each run of skipped ones, in order and apart


def batch_of(step: int, skipped: Ranges) -> int:
    """The batch that `step` reads."""
    batch = step
    for first, last in skipped:
        if first > batch:
            break
        batch += last - first + 1
    return batch


def with_batches(skipped: Ranges, batches: Iterable[int]) -> Ranges:
    """The ranges with more batches in them."""
    left_out = sorted({*batches, *(batch for first, last in skipped for batch in range(first, last + 1))})
    found: list[list[int]] = []
    for batch in left_out:
        if found and batch == found[-1][1] + 1:
            found[-1][1] = batch
        else:
            found.append([batch, batch])
    return as_ranges(found)


def as_ranges(pairs: Sequence[Sequence[int]]) -> Ranges:
    """Ranges as JSON gives them back."""
    return tuple((first, last) for first, last in pairs)


def count(skipped: Ranges) -> int:
    """How many batches are skipped."""
    return sum(last - first + 1 for first, last in skipped)
