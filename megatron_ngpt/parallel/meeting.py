"""How the ranks of a run find each other, and what a person is told while some are missing."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from megatron_ngpt.errors import ConfigError, NgptError, RankError

PATIENCE = 5.0  # seconds of waiting before a person is told
ASKING = (0.05, 1.0)  # seconds between two questions to the store, at first and at most: thousands of ranks ask the same one
SHOWN = 8  # missing ranks that are named
EVERYONE = "everyone"
COUNT = "count"

Say = Callable[[str], None]


def meet(rank: int, world: int, timeout: timedelta, say: Say) -> dist.Store:
    """The store through which the ranks of a run speak, as soon as each of them is there.

    Rank 0 answers at MASTER_ADDR:MASTER_PORT; under torchrun its agent does. Who waits longer than a moment gives `say` a line: for
    whom, at which address, how long at most.

    Raises:
        NgptError: a rank did not come in `timeout`; RankError: another process has the port, or nobody answers at the address.
        ConfigError: who answers is another run, which has this rank already; this run's rank 0 tells why it is not there.
    """
    began, address = time.monotonic(), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    limit = f"{_words(timeout)} at most{_how_to_run_alone()}"
    whom = "rank 0" if rank else "an answer"
    with _told(say, f"rank {rank} of {world} waits for {whom} at {address}, {limit}"):
        store = _store(rank, world, timeout, address)
    # An agent's store outlives a failed attempt. On several hosts each agent counts attempts by itself, and none may share its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _from_agent() else "0"
    store = dist.PrefixStore(f"meeting/{attempt}", store)
    own = secrets.token_hex(8)
    if _from_agent():
        store.set(str(rank), own)
    elif store.compare_set(str(rank), "", own) != own.encode():
        raise ConfigError(f"MASTER_PORT = {os.environ['MASTER_PORT']}: another run, which has a rank {rank} already, answers at {address}")
    until = began + max(1.0, timeout.total_seconds())
    store.add(COUNT, 1)
    if rank == 0:
        _wait_for_all(store, world, until, say, f"at {address}, {limit}")
        store.set(EVERYONE, "here")
    else:
        try:
            there = _come(lambda: store.check([EVERYONE]), until)
        except dist.DistError:  # rank 0 left, and its store with it
            there = False
        if not there:
            raise NgptError(f"rank 0 at {address} did not find all {world} ranks in {_words(timeout)}")  # which it tells itself
    return store


def _store(rank: int, world: int, timeout: timedelta, address: str) -> dist.Store:
    agent = _from_agent()
    host, _, port = address.rpartition(":")
    try:
        return dist.TCPStore(host, int(port), world, rank == 0 and not agent, timeout, wait_for_workers=False, multi_tenant=not agent)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise RankError(
                f"port {port} of {host} is taken by another process, perhaps another run; choose another: --master_port "
                f"{int(port) + 1} (deepspeed, torchrun) or MASTER_PORT={int(port) + 1} (srun)"
            ) from error
        raise RankError(f"no answer at {address} in {_words(timeout)}: {str(error).splitlines()[0]}") from error


def _from_agent() -> bool:
    """Whether the store is that of torchrun's agent: its own run's alone, and the same one after a restart."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _wait_for_all(store: dist.Store, world: int, until: float, say: Say, where: str) -> None:
    """Until each rank has said that it is there; rank 0 tells which have not."""
    all_there = lambda: store.add(COUNT, 0) >= world  # noqa: E731
    if _come(all_there, min(until, time.monotonic() + PATIENCE)):
        return
    say(f"rank 0 of {world} waits for {_missing(store, world)} {where}")
    if not _come(all_there, until):
        raise NgptError(f"{_missing(store, world)} did not come {where}")
    say(f"all {world} ranks are there")


def _come(there: Callable[[], bool], until: float) -> bool:
    """Whether it is so by then. Asks now and then: the store's own waiting fills the screen when time is up."""
    pause, most = ASKING
    while not there():
        if time.monotonic() > until:
            return False
        time.sleep(pause)
        pause = min(most, pause * 1.5)
    return True


def _missing(store: dist.Store, world: int) -> str:
    names = [str(rank) for rank in range(world) if not store.check([str(rank)])]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"rank{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}{more}"


def _how_to_run_alone() -> str:
    """What to do if this process was never meant to be one of several; under srun it was."""
    return "" if "SLURM_STEP_ID" in os.environ else "; for a run of one rank, unset RANK and WORLD_SIZE"


def _words(time: timedelta) -> str:
    seconds = time.total_seconds()
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


@contextmanager
def _told(say: Say, line: str) -> Iterator[None]:
    """Give `say` the line if what is done here takes longer than a moment."""
    timer = threading.Timer(PATIENCE, say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
