"""Which tokens of a window a context rank holds, and which rectangles of queries and keys its attention is made of.

A window of T tokens lies over c context ranks in one of two ways. `ulysses`: rank r holds the r-th of c equal runs. `ring`: the window is
2 c equal runs, and rank r holds runs r and 2 c − 1 − r, so that each rank has as many pairs of a query and an earlier key as any other.
"""

from collections.abc import Iterator

from megatron_ngpt.parallel.attention_blocks import Block

Run = tuple[int, int]  # first position and the one after the last


def held_runs(context: int, size: int, rank: int, kind: str) -> list[Run]:
    """The runs of positions of a window of `context` tokens that `rank` of `size` context ranks holds, in the order it holds them."""
    if size == 1:
        return [(0, context)]
    if kind == "ulysses":
        length = context // size
        return [(rank * length, (rank + 1) * length)]
    length = context // (2 * size)
    return [(place * length, (place + 1) * length) for place in (rank, 2 * size - 1 - rank)]


def blocks(queries: list[Run], keys: list[Run], documents: list[list[Run]] | None) -> list[Block]:
    """The rectangles of a causal attention between held queries and held keys.

    Args:
        queries, keys: `held_runs` of the ranks that hold them; any two runs are the same or do not meet.
        documents: for each row of the batch, the runs of its documents over the whole window; None where a window is one document.
    """
    if documents is None:
        return list(_row_blocks(slice(None), queries, keys, None))
    return [block for row, runs in enumerate(documents) for block in _row_blocks(slice(row, row + 1), queries, keys, runs)]


def _row_blocks(rows: slice, queries: list[Run], keys: list[Run], documents: list[Run] | None) -> Iterator[Block]:
    query_place = 0
    for first, last in queries:
        key_place = 0
        for key_first, key_last in keys:
            if key_first == first:
                for start, stop in _meeting(documents, first, last):
                    here = slice(start - first + query_place, stop - first + query_place)
                    yield Block(rows, here, slice(start - first + key_place, stop - first + key_place), causal=True)
            elif key_first < first:
                start, stop = _spanning(documents, key_last, first) or (0, 0)
                if start < key_last and stop > first:
                    here = slice(query_place, min(stop, last) - first + query_place)
                    yield Block(rows, here, slice(max(start, key_first) - key_first + key_place, key_last - key_first + key_place), False)
            key_place += key_last - key_first
        query_place += last - first


def _meeting(documents: list[Run] | None, first: int, last: int) -> list[Run]:
    """The parts of the documents that lie in a run."""
    if documents is None:
        return [(first, last)]
    return [(max(start, first), min(stop, last)) for start, stop in documents if start < last and stop > first]


def _spanning(documents: list[Run] | None, key_last: int, first: int) -> Run | None:
    """The document that holds both the last of some earlier keys and the first query; None if there is none."""
    if documents is None:
        return 0, 1 << 62
    return next(((start, stop) for start, stop in documents if start < key_last and stop > first), None)
