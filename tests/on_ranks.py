"""Runs a function on n ranks, so that a distributed test reads like a plain one.

    def total(axis_size):
        ...collectives over dist.group.WORLD...
        return value

    def test_total():
        assert on_ranks(3, total, 3) == [6, 6, 6]

The ranks are forks of one server that has imported torch and DeepSpeed already (`tests.distributed.preload`).
"""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.preload"])
_GRACE = 1.0  # seconds in which other ranks may still tell how they failed


class RankFailure(AssertionError):
    """A rank raised, died or did not finish; the message holds its traceback."""


def on_ranks(n: int, function: Callable, *args, seconds: float = 60) -> list[Any]:
    """What `function(*args)` returns on each of n ranks of a gloo process group.

    Args:
        function: of a module, not of another function, as it is sent by name; its results must pickle.
        seconds: a limit for all ranks together; whoever runs when it is over is killed.

    Raises:
        RankFailure: with the traceback of the rank that failed first.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes, ends = [], []
        for rank in range(n):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(target=_rank, args=(rank, n, f"{folder}/store", theirs, function, args), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
        try:
            return _results(ends, processes, time.monotonic() + seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _results(ends: list[Connection], processes: list, deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(ends)
    failures, pending = [], set(range(len(ends)))
    while pending:
        ready = wait([ends[rank] for rank in pending], timeout=max(0.0, deadline - time.monotonic()))
        for rank in [r for r in pending if ends[r] in ready]:
            pending.discard(rank)
            finished, value = _receive(ends[rank], processes[rank])
            if finished:
                results[rank] = value
            else:
                failures.append(f"rank {rank} of {len(ends)}: {value}")
                deadline = min(deadline, time.monotonic() + _GRACE)
        if not ready:
            failures.append(f"ranks {sorted(pending)} of {len(ends)} did not finish")
            break
    if failures:
        raise RankFailure("\n".join(failures))
    return results


def _receive(end: Connection, process) -> tuple[bool, Any]:
    try:
        return end.recv()
    except EOFError:
        process.join()
        return False, f"died with exit status {process.exitcode}"


def _rank(rank: int, ranks: int, store: str, end: Connection, function: Callable, args: tuple) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    try:
        # By value: multiprocessing's own pickling would share a tensor's memory with a process that is about to end.
        outcome = pickle.dumps((True, function(*args)))
    except BaseException:
        outcome = pickle.dumps((False, traceback.format_exc()))
    end.send_bytes(outcome)
    wait([multiprocessing.parent_process().sentinel])  # to be killed: nobody leaves while another rank may still talk to it
