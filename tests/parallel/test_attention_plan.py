"""The rectangles of a divided or masked causal attention cover each allowed pair of query and key once, and no other."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.parallel.attention_plan import blocks, held_runs
from megatron_ngpt.parallel.documents import document_runs, documents_of

CONTEXT, CPU = 48, torch.device("cpu")


def positions(size: int, rank: int, kind: str) -> np.ndarray:
    return np.concatenate([np.arange(first, last) for first, last in held_runs(CONTEXT, size, rank, kind)])


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_hold_every_position_once(kind, size):
    held = [positions(size, rank, kind) for rank in range(size)]
    assert sorted(np.concatenate(held)) == list(range(CONTEXT))
    assert {len(part) for part in held} == {CONTEXT // size}


def seen(size: int, rank: int, rows: np.ndarray | None) -> np.ndarray:
    """How often the blocks let each query of the rank see each position, [rows, queries, positions]."""
    runs = [held_runs(CONTEXT, size, r, "ring") for r in range(size)]
    documents = None if rows is None else document_runs(documents_of(torch.from_numpy(rows), CPU).bounds, CONTEXT)
    counts = np.zeros((1 if rows is None else len(rows), CONTEXT // size, CONTEXT), int)
    for other in range(size):
        keys = positions(size, other, "ring")
        for block in blocks(runs[rank], runs[other], documents):
            queries = range(*block.queries.indices(CONTEXT // size))
            columns = keys[block.keys]
            assert not block.causal or len(queries) == len(columns)
            for row, (i, query) in itertools.product(range(*block.rows.indices(len(counts))), enumerate(queries)):
                counts[row, query, columns[: i + 1] if block.causal else columns] += 1
    return counts


def allowed(size: int, rank: int, rows: np.ndarray | None) -> np.ndarray:
    at, every = positions(size, rank, "ring")[:, None], np.arange(CONTEXT)
    causal = (every <= at)[None]
    if rows is None:
        return causal.astype(int)
    return (causal & (rows[:, None, :] == rows[:, at[:, 0]][:, :, None])).astype(int)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_blocks_cover_the_causal_triangle(size):
    for rank in range(size):
        assert (seen(size, rank, None) == allowed(size, rank, None)).all()


@given(st.integers(1, 4), st.lists(st.sets(st.integers(1, CONTEXT - 1), max_size=12), min_size=1, max_size=3))
def test_blocks_cover_each_documents_triangle(size, cuts):
    rows = np.array([np.isin(np.arange(CONTEXT), list(row)).cumsum() for row in cuts])
    for rank in range(size):
        assert (seen(size, rank, rows) == allowed(size, rank, rows)).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_rings_work_is_even(size):
    work = [int(allowed(size, rank, None).sum()) for rank in range(size)]
    assert max(work) - min(work) <= 0.05 * max(work)
