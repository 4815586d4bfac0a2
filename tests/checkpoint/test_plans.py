"""What ranks tell rank 0 of what they hold: once, as long as it stays as it is."""

import pickle

import pytest
import torch

from megatron_ngpt.checkpoint import pieces
from megatron_ngpt.checkpoint.pieces import Pieces, chunk_bytes
from megatron_ngpt.checkpoint.storage import Writer
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.errors import CheckpointError
from tests.checkpoint.layouts import Layout, build, differences, fill, run_ranks
from tests.checkpoint.stores import check_readable, saved

LAYOUT = Layout(tensor=2, data=2, partition=True)


def saves_again(rank, directory):
    """The bytes of this rank's plan in each of four saves: without moments, with them in one that fails, after that, and again."""
    shards, optimizer = build(LAYOUT, rank)
    store, sent = CheckpointStore(directory, keep=4, keep_every=0), []
    original = Writer.prepare_local_plan
    Writer.prepare_local_plan = lambda self, plan: (sent.append(len(pickle.dumps(plan))), original(self, plan))[1]

    optimizer.state.clear()
    saved(store, 1, shards, optimizer)
    fill(shards, optimizer, 3, step=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="refused"):
        patch.setattr(Writer, "prepare_global_plan", refuse)
        saved(store, 2, shards, optimizer)
    saved(store, 3, shards, optimizer)
    fill(shards, optimizer, 3, step=4)
    return sent, saved(store, 4, shards, optimizer), differences(shards, optimizer, 3, LAYOUT, rank)


def refuse(self, plans):
    raise OSError(5, "refused")


def test_a_plan_is_sent_once_and_again_where_it_changed_or_did_not_get_there(tmp_path):
    for sent, path, problems in run_ranks(4, saves_again, tmp_path):
        weights, failed, whole, again = sent
        assert 2 * weights < failed == whole  # rank 0 never took the failed one
        assert again < 200
        assert problems == []
        check_readable(path)


def one_changes(rank, directory):
    """Two saves of replicas; in the second, rank 1 has nothing of the last parameters."""
    shards, optimizer = build(Layout(data=2), rank)
    fill(shards, optimizer, 3, step=1)
    store = CheckpointStore(directory, keep=2, keep_every=0)
    saved(store, 1, shards, optimizer)
    kept = dict(list(shards.items())[:4]) if rank == 1 else shards
    return saved(store, 2, kept, optimizer)


def test_where_one_rank_comes_to_hold_less_all_plans_are_made_anew(tmp_path):
    first, second = run_ranks(2, one_changes, tmp_path)
    assert first == second
    check_readable(first)


@pytest.mark.parametrize(("parameters", "expected"), [(10**8, 2**20), (7 * 10**9, 2**23), (70 * 10**9, 2**26)])
def test_chunks_grow_with_the_model_so_that_their_number_does_not(parameters, expected):
    tensors = {str(number): Pieces(torch.Size((parameters // 100, 100)), {}) for number in range(3)}  # weights and both moments
    assert chunk_bytes(tensors) == expected
    assert 12 * parameters / expected <= pieces.CHUNKS
