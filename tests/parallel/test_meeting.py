"""How ranks find each other, and what is said while some are missing."""

import re
import socket
import threading
from contextlib import suppress
from datetime import timedelta

import pytest

from megatron_ngpt.errors import ConfigError, NgptError, RankError
from megatron_ngpt.parallel import meeting

SOON = timedelta(seconds=2)


@pytest.fixture
def port(monkeypatch):
    """A free port, at which ranks of this process meet; a moment is short."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(number))
    monkeypatch.setattr(meeting, "PATIENCE", 0.3)
    return number


def arrive(rank: int, world: int, timeout: timedelta, said: list[str]) -> threading.Thread:
    """A rank that comes in a thread of its own."""
    def meet() -> None:
        with suppress(NgptError):
            meeting.meet(rank, world, timeout, said.append)

    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    return thread


def test_ranks_that_come_together_say_nothing_and_share_a_store(port):
    said, timeout = [], timedelta(seconds=60)
    meeting.PATIENCE = 30.0
    other = arrive(1, 2, timeout, said)
    store = meeting.meet(0, 2, timeout, said.append)
    other.join(30)
    assert not other.is_alive() and said == []
    store.set("word", "given")
    assert store.get("word") == b"given"


def test_rank_0_tells_who_is_missing_where_and_for_how_long(port):
    said = []
    with pytest.raises(NgptError, match=r"^ranks 1, 3 did not come at 127\.0\.0\.1:\d+, 2 seconds at most"):
        arrive(2, 4, SOON, said)
        meeting.meet(0, 4, SOON, said.append)
    [line] = [line for line in said if line.startswith("rank 0 ")]  # rank 2 may have come first, and waited for rank 0
    who = r"1, (2, )?3"  # rank 2 may be late
    assert re.match(rf"rank 0 of 4 waits for ranks {who} at 127\.0\.0\.1:{port}, 2 seconds at most; for a run of one rank", line)


def test_a_rank_that_came_late_is_greeted(port):
    said = []
    later = threading.Timer(1.0, lambda: meeting.meet(1, 2, timedelta(seconds=60), said.append))
    later.start()
    store = meeting.meet(0, 2, timedelta(seconds=60), said.append)
    later.join(30)
    assert said[0].startswith("rank 0 of 2 waits for rank 1 at") and said[-1] == "all 2 ranks are there" and store


def test_another_rank_tells_that_rank_0_does_not_answer(port):
    said = []
    with pytest.raises(RankError, match=f"no answer at 127.0.0.1:{port}"):
        meeting.meet(1, 2, SOON, said.append)
    assert said[0].startswith(f"rank 1 of 2 waits for rank 0 at 127.0.0.1:{port}, ")


def test_a_port_that_is_taken_is_one_line(port):
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(RankError) as caught:
            meeting.meet(0, 2, SOON, print)
    assert str(caught.value) == (
        f"port {port} of 127.0.0.1 is taken by another process, perhaps another run; choose another: --master_port {port + 1} "
        f"(deepspeed, torchrun) or MASTER_PORT={port + 1} (srun)")


def test_a_rank_whose_own_rank_0_was_refused_does_not_join_the_run_that_has_the_port(port):
    said, timeout = [], timedelta(seconds=60)
    other = arrive(1, 2, timeout, said)
    store = meeting.meet(0, 2, timeout, said.append)
    other.join(30)
    with pytest.raises(ConfigError, match=f"MASTER_PORT = {port}: another run, which has a rank 1 already, answers at 127.0.0.1:{port}"):
        meeting.meet(1, 2, timeout, said.append)
    assert store


def test_what_torchruns_agent_kept_of_a_rank_does_not_refuse_the_same_rank(port, monkeypatch):
    """Its store outlives ranks that it starts again."""
    agent = meeting.dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert agent and meeting.meet(0, 1, SOON, print) and meeting.meet(0, 1, SOON, print)


def test_where_no_agent_has_the_store_its_count_of_restarts_names_nothing(port, monkeypatch):
    """When a host is lost, those that are left may have counted differently."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    store = meeting.meet(0, 1, SOON, print)
    assert store and meeting.dist.TCPStore("127.0.0.1", port, is_master=False).check(["meeting/0/0"])
