"""The runner of distributed tests: results, tracebacks and time-outs."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.on_ranks import RankFailure, on_ranks


def gathered(offset):
    mine = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(mine)
    return dist.get_rank(), dist.get_world_size(), mine


def fail_on_one():
    if dist.get_rank() == 1:
        raise ValueError("rank one is unwell")
    dist.barrier()


def end_on_one():
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def hang():
    time.sleep(600)


def test_each_rank_returns_its_own_result():
    assert on_ranks(3, gathered, 10) == [(0, 3, torch.tensor([33])), (1, 3, torch.tensor([33])), (2, 3, torch.tensor([33]))]


def test_a_rank_that_raises_fails_the_test_with_its_traceback():
    with pytest.raises(RankFailure, match=r"(?s)rank 1 of 2.*fail_on_one.*ValueError: rank one is unwell"):
        on_ranks(2, fail_on_one)


def test_a_rank_that_dies_fails_the_test():
    with pytest.raises(RankFailure, match="rank 1 of 2: died with exit status 7"):
        on_ranks(2, end_on_one)


def test_time_out_ends_all_ranks():
    started = time.monotonic()
    with pytest.raises(RankFailure, match=r"ranks \[0, 1\] of 2 did not finish"):
        on_ranks(2, hang, seconds=1)
    assert time.monotonic() - started < 30
