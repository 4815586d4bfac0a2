"""A run of a flattened matrix as rectangles, and as boxes of the global tensor."""

from itertools import islice

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import place
from megatron_ngpt.parallel.shards import Shard, rectangles
from tests.records import record


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 20))
def test_rectangles_cover_the_run_in_order(start, count, columns):
    found = list(islice(rectangles(start, count, columns), 4))
    assert len(found) <= 3
    covered = []
    for row, column, rows, width, at in found:
        assert at == len(covered) and rows > 0 and width > 0 and column + width <= columns
        covered += [(row + r) * columns + column + c for r in range(rows) for c in range(width)]
    assert covered == list(range(start, start + count))


@st.composite
def cut_matrices(draw):
    """A global matrix of distinct numbers, its padded local part on a tensor rank, and a shard that is a run of that."""
    ranks, dim = draw(st.integers(1, 3)), draw(st.sampled_from([0, 1, None]))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 4)) * (ranks if dim == 1 else 1)
    axis = Axis(draw(st.integers(0, ranks - 1)), ranks)
    placement = place(record((rows, columns), dim, pads=dim == 0), axis)
    whole = torch.arange(1.0, 1 + rows * columns).view(rows, columns)
    local = torch.zeros(placement.local)
    (row, column), (height, width) = placement.offset, placement.local
    kept = whole[row : row + height, column : column + width]
    local[: kept.shape[0]] = kept
    start, stop = sorted(draw(st.tuples(*[st.integers(0, local.numel())] * 2)))
    before = draw(st.integers(0, 5))
    buffer = torch.cat([torch.full((before,), -1.0), local.view(-1)[start:stop], torch.full((3,), -1.0)])
    shard = Shard(placement, start, stop - start, buffer if stop > start else None, before, 0)
    return whole, local.view(-1)[start:stop], shard


@given(cut_matrices())
def test_boxes_are_the_run_in_the_global_tensor_without_padding(drawn):
    whole, run, shard = drawn
    assert shard.master.tolist() == run.tolist()
    boxes = shard.boxes(shard.master)
    assert len(boxes) <= 3
    for box in boxes:
        assert box.values.shape == whole[box.rows, box.columns].shape
        assert torch.equal(box.values, whole[box.rows, box.columns])
    assert sorted(v for box in boxes for v in box.values.flatten().tolist()) == run[run > 0].tolist()


@given(cut_matrices())
def test_writing_to_boxes_writes_to_the_master_and_nothing_else(drawn):
    _, run, shard = drawn
    for box in shard.boxes(shard.master):
        box.values.add_(1000)
    assert shard.master.tolist() == torch.where(run > 0, run + 1000, run).tolist()
    if shard.count:
        others = torch.cat([shard.buffer[: shard.offset], shard.buffer[shard.offset + shard.count :]])
        assert (others == -1).all()


@given(st.integers(1, 12), st.integers(1, 3), st.data())
def test_vectors_are_one_column(length, ranks, data):
    axis = Axis(data.draw(st.integers(0, ranks - 1)), ranks)
    placement = place(record((length,), 0, pads=True), axis)
    values = torch.arange(float(placement.local[0]))
    shard = Shard(placement, 0, len(values), values, 0, 0)
    kept = max(0, min(len(values), length - placement.offset[0]))
    found = [(box.row, box.column, box.values.flatten().tolist()) for box in shard.boxes(shard.master)]
    assert found == ([(placement.offset[0], 0, list(range(kept)))] if kept else [])
