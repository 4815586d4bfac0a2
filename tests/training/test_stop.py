"""Who asks for a stop, what a person is told at once, and where the ranks agree to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from megatron_ngpt.errors import NgptError
from megatron_ngpt.training import launcher, stop
from megatron_ngpt.training.stop import Stopped, StopRequest
from tests.on_ranks import on_ranks

NAMES = ["SIGTERM", "SIGINT", "SIGUSR1", "SIGXCPU", "SIGHUP"]


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def every_signal():
    """On a rank: what is said to each signal, by itself."""
    found = {}
    for name in NAMES:
        told = []
        request = StopRequest(told.append)
        request.begin(4)
        before = request.agreed()
        os.kill(os.getpid(), getattr(signal, name))
        until(lambda told=told: told)
        found[name] = (before, request.agreed(), told)
        request.close()
    return found


def test_every_signal_is_taken_and_answered():
    [found] = on_ranks(1, every_signal)
    for name, (before, after, told) in found.items():
        why, again = ("Ctrl-C", "; again to stop now") if name == "SIGINT" else (name, "")
        assert not before and after and told == [f"{why}: finishing step 4, then a checkpoint{again}"]


def one_is_asked():
    request, count = StopRequest(), 0
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: request.asked)
    request.begin(1)
    try:
        while count < 10:
            count += 1
            request.between()
    except Stopped:
        return count
    return "never"


def test_ranks_stop_at_the_same_micro_batch():
    assert on_ranks(2, one_is_asked) == [1, 1]


def counts_agreements():
    """Micro-batches of 0.4 seconds are asked about in threes, quick ones not at all."""
    request, asked, original = StopRequest(), [], dist.all_reduce

    def all_reduce(told, **options):
        asked.append(count)
        original(told, **options)

    dist.all_reduce = all_reduce
    for seconds in (0.0, 0.4):
        request.begin(1)
        request._began -= seconds
        count = "step"
        request.agreed()
        request.begin(2)
        for count in range(1, 8):  # noqa: B007
            request._began -= seconds
            request.between()
    return asked


def test_ranks_ask_each_other_about_once_a_second():
    [asked] = on_ranks(1, counts_agreements)
    assert asked[0] == "step" and asked.count("step") == 2
    assert asked[1:] in (["step", 3, 6], ["step", 2, 4, 6], ["step", 3, 5, 7])


class Lost:
    def lost(self):
        return True

    def check(self):
        raise NgptError("taken by another")


def loses():
    with pytest.raises(NgptError) as error:
        StopRequest(ownership=Lost() if dist.get_rank() == 0 else None).agreed()
    return str(error.value)


def test_all_ranks_leave_when_the_first_has_lost_the_directory():
    assert on_ranks(2, loses) == ["taken by another", "the run directory is used by another run now; stopped without writing there"]


def interrupted_twice():
    told = []
    os._exit = told.append
    StopRequest(told.append)
    for count in (1, 3):
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda count=count: len(told) >= count)
    return told


def test_the_second_ctrl_c_is_not_waited_for():
    [told] = on_ranks(1, interrupted_twice)
    assert told[1:] == ["stopped at once: what was trained since the last checkpoint is lost", 130]


RANK = """
import sys, time
from megatron_ngpt.training.launcher import launchers, running
found = launchers()
print(len(found), flush=True)
while all(map(running, found)):
    time.sleep(0.01)
print("gone", flush=True)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.parametrize("chain", [["deepspeed", "launch"], ["torchrun"]])
def test_the_end_of_any_launcher_above_is_seen(tmp_path, chain):
    """As SIGTERM to the `deepspeed` command on one host ends it alone; a shell above may end, and is none."""
    names = {"deepspeed": "deepspeed", "launch": "deepspeed.launcher.launch", "torchrun": "torchrun"}
    (tmp_path / "rank.py").write_text(RANK)
    for name in names.values():
        (tmp_path / name).write_text(PARENT)
    command = [sys.executable, "-c", PARENT, *(str(tmp_path / names[name]) for name in chain), str(tmp_path / "rank.py")]
    for number in range(len(chain)):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
        assert process.stdout.readline() == f"{len(chain)}\n"
        children = [process.pid]
        for _ in range(number + 1):
            pid = children[-1]
            children.append(int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]))
        os.kill(children[-1], signal.SIGTERM)
        assert process.stdout.readline() == "gone\n"
        process.wait()


CHAIN = [["python", "-m", "deepspeed.launcher.launch"], ["sh", "-c", "cd x; python"], ["sshd: me@notty"], ["sshd: me [priv]"], ["bash"]]


@pytest.mark.parametrize(("ignored", "found"), [(False, [1, 3, 4]), (True, [1])])
def test_an_ssh_session_is_a_launcher_unless_nohup_keeps_its_ranks(monkeypatch, ignored, found):
    """pdsh starts DeepSpeed's launcher through ssh: when they are killed, ranks on other hosts see the session's end alone."""
    monkeypatch.setattr(launcher, "_above", lambda: [(1 + k, words, Path("/")) for k, words in enumerate(CHAIN)])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    launcher.launchers.cache_clear()
    try:
        assert [process for process, _ in launcher.launchers()] == found
    finally:
        signal.signal(signal.SIGHUP, before)
        launcher.launchers.cache_clear()


def launcher_ends():
    told = []
    launcher.launchers.cache_clear()
    stop.launchers = lambda: [(1 << 30, 1)]
    request = StopRequest(told.append)
    until(lambda: told)
    return told, request.agreed()


def test_a_launcher_that_is_gone_asks_for_a_stop():
    assert on_ranks(1, launcher_ends) == [(["its launcher is gone: finishing step 0, then a checkpoint"], True)]


def profile_is_asked():
    request, found = StopRequest(), []
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
        until(lambda: request._profile_asked)
    for step in (1, 2):
        request.begin(step)
        found.append((request.agreed(), request.profile_asked_by()))
    return found


def test_sigusr2_asks_all_ranks_for_a_profile_once_and_stops_nothing():
    assert on_ranks(3, profile_is_asked) == [[(False, 1), (False, None)]] * 3
