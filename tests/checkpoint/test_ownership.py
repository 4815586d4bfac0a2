"""A run directory has one owner: who else starts is refused, who died is followed at once, who was taken for dead stops."""

import multiprocessing
import os
import re
import signal
import threading
import time

import pytest

from megatron_ngpt.checkpoint import ownership
from megatron_ngpt.checkpoint.ownership import OwnershipLostError, check_free, claim, user_of
from megatron_ngpt.errors import ConfigError

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tenths."""
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    monkeypatch.setattr(ownership, "STALE", 1.0)
    monkeypatch.setattr(time, "sleep", lambda seconds, original=time.sleep: original(seconds / 10))


@pytest.fixture
def elsewhere(monkeypatch):
    """From now on this process looks from another host."""
    return lambda: monkeypatch.setattr(ownership, "_machine", lambda: "another")


def owned(output):
    return sorted(path.name for path in output.glob("*owner*"))


def test_a_second_start_is_refused_in_one_line_that_names_the_first(tmp_path):
    first = claim(tmp_path / "run", "a")
    with pytest.raises(ConfigError) as error:
        claim(tmp_path / "run", "b")
    host, process = re.escape(ownership.socket.gethostname()), os.getpid()
    words = rf"process {process} on {host}, started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"training\.output = {tmp_path}/run: in use by {words}; [^\n]+", str(error.value))
    assert re.fullmatch(words, user_of(tmp_path / "run"))
    with pytest.raises(ConfigError):
        check_free(tmp_path / "run", "b")
    check_free(tmp_path / "run", "a")
    first.check()
    assert not first.lost()
    first.release()
    assert owned(tmp_path / "run") == [] and user_of(tmp_path / "run") is None
    claim(tmp_path / "run", "b").release()


def own_and(what, output):
    claim(output, "a")
    (output / "ready").touch()
    os.kill(os.getpid(), what)


@pytest.mark.parametrize("waited_for", [True, False])
def test_a_killed_owner_is_followed_at_once(tmp_path, waited_for):
    process = FORK.Process(target=own_and, args=(signal.SIGKILL, tmp_path))
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    if waited_for:
        process.join()
    else:  # its parent has not noticed yet
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert owned(tmp_path) == ["owner-00000001.json"]
    successor = claim(tmp_path, "b", lambda line: pytest.fail(line))
    assert owned(tmp_path) == ["owner-00000002.json"]
    successor.check()
    successor.release()
    process.join()


def test_another_process_with_the_number_of_the_dead_one_is_not_it(tmp_path, monkeypatch):
    first = claim(tmp_path, "a")
    first._over.set()
    monkeypatch.setattr(ownership, "start_of", lambda process, original=ownership.start_of: original(process) + 1)
    claim(tmp_path, "b").check()


def test_a_stopped_owner_on_this_host_lives(tmp_path):
    process = FORK.Process(target=own_and, args=(signal.SIGSTOP, tmp_path))
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    with pytest.raises(ConfigError, match=f"process {process.pid}"):
        claim(tmp_path, "b")
    process.kill()
    process.join()


def test_an_owner_on_another_host_that_beats_is_refused(tmp_path, quick, elsewhere):
    first, told = claim(tmp_path, "a"), []
    elsewhere()
    with pytest.raises(ConfigError, match="in use by process"):
        claim(tmp_path, "b", told.append)
    assert len(told) == 1 and "waiting at most 1 seconds for a sign of life" in told[0]
    first.release()


def test_an_owner_on_another_host_that_is_silent_is_followed_and_stops_when_it_wakes(tmp_path, quick, elsewhere):
    first = claim(tmp_path, "a")
    first._over.set()  # paused: it does not beat
    elsewhere()
    second = claim(tmp_path, "b")
    assert owned(tmp_path) == ["owner-00000002.json"]
    first._beat_on()  # awake
    time.sleep(2)
    assert first.lost() and not second.lost()
    with pytest.raises(OwnershipLostError, match=f"{tmp_path} is used by process {os.getpid()} on .* now: this run was taken for dead"):
        first.check()
    first.release()
    second.check()
    assert owned(tmp_path) == ["owner-00000002.json"]
    second.release()
    with pytest.raises(OwnershipLostError, match="is not this run's any more"):
        first.check()
    third = claim(tmp_path, "c")  # with the first one's number
    with pytest.raises(OwnershipLostError):
        first.check()
    first._beat()
    third.check()
    third.release()


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path, quick, elsewhere):
    claim(tmp_path, "dead")._over.set()
    elsewhere()
    gate, won, refused = threading.Barrier(6), [], []

    def contend(number):
        gate.wait()
        try:
            won.append(claim(tmp_path, str(number)))
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(refused) == 5
    won[0].check()
    won[0].release()
    assert owned(tmp_path) == []


def test_a_rank_of_the_same_start_waits_for_its_owner(tmp_path, quick, elsewhere):
    claim(tmp_path, "dead")._over.set()
    elsewhere()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(claim(tmp_path, "job")))
    thread.start()
    check_free(tmp_path, "job")
    thread.join()
    taken[0].release()


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "{}", '{"process": "x", "machine": null}'])
def test_an_owners_file_that_says_nothing_is_waited_for(tmp_path, quick, content):
    (tmp_path / "owner-00000004.json").write_text(content)
    claim(tmp_path, "a").release()
    assert owned(tmp_path) == []


def test_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first = claim(tmp_path, "a")
    with pytest.raises(ConfigError, match="in use by"):
        claim(tmp_path, "b")
    first.release()


def test_a_disk_that_does_not_answer_proves_nothing(tmp_path, monkeypatch):
    first = claim(tmp_path, "a")
    first._confirmed -= 100

    def failing(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "_owner_path", failing)
        assert not first.lost()
        with pytest.raises(OSError):
            first.check()
    first.check()
    first.release()
