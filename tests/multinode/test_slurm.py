"""launch/slurm.sbatch under Slurm itself, on two hosts: a job that is ended goes back into the queue, and on from its checkpoint."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.distributed.ranks import train
from tests.faults.runs import lines
from tests.multinode.befall import environment, unhurried
from tests.multinode.hosts import VARIABLES, Hosts, hosts_of, succeeded
from tests.multinode.slurm import Slurm

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ZERO = f"--deepspeed={REPOSITORY / 'ds_configs/zero1.json'}"
OPTIONS = ["--checkpoint.every=10", ZERO, "--schedule.kind=constant", "--training.steps=160"]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
NODES = ["--nodes=2", "--ntasks-per-node=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """On two hosts."""
    with hosts_of(1, 1) as hosts:
        yield Slurm(hosts, tmp_path_factory.mktemp("slurm"), 2)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> list[dict]:
    """The lines of the same recipe on two ranks of one host."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(2, [str(corpus / "recipe.yaml"), *OPTIONS], output)
    return lines(output)


def rank_killed(slurm: Slurm, job: int) -> None:
    """SIGKILL of a rank."""
    assert slurm.hosts.on(2, "pkill", f"-{signal.SIGKILL.value}", "-f", "launch/pretrain.py").returncode == 0


def preempted(slurm: Slurm, job: int) -> None:
    """SIGTERM to the script, as Slurm itself sends it before the time is up."""
    assert slurm.hosts.on(1, "scancel", "--batch", "--signal=TERM", str(job), SLURM_CONF=str(slurm.folder / "slurm.conf")).returncode == 0


def out_of_time(slurm: Slurm, job: int) -> None:
    """The time limit, for which nothing need be done."""


def without_power(slurm: Slurm, job: int) -> None:
    """A host without power, which comes back when Slurm has given it up."""
    slurm.hosts.do("kill", 2)
    slurm.wait(lambda: slurm.job(job)["JobState"] != "RUNNING", "the loss noticed")
    slurm.boot(2)


def starts(output: Path) -> list[int]:
    """First step of every start."""
    return [event["step"] for event in read_events(output) if event["event"] == "start"]


def trained(output: Path) -> int:
    """Lines of steps."""
    path = output / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def strays(hosts: Hosts) -> list[str]:
    """Of the run, on both hosts."""
    return [line for k in (1, 2) for line in hosts.processes(k) if "pretrain" in line or "megatron" in line]


@pytest.mark.parametrize(("happens", "words"), [
    (rank_killed, []), (preempted, []), (without_power, []), (out_of_time, ["--time=2", "--signal=B:TERM@75"]),
])
def test_goes_on_after(slurm, corpus, tmp_path, undisturbed, happens, words):
    run = tmp_path / "run"
    command = ["launch/slurm.sbatch", corpus / "recipe.yaml", *OPTIONS, "--watchdog.step=60", f"--training.output={run}"]
    job = slurm.submit(*NODES, *words, *command, **environment(unhurried, tmp_path / "site"))
    try:
        slurm.wait(lambda: trained(run) >= 14 or slurm.job(job)["JobState"] in ENDED, "step 14")
        struck, reached = time.monotonic(), trained(run)
        happens(slurm, job)
        slurm.wait(lambda: len(starts(run)) == 2, "another start")
        begun = starts(run)[-1]
        slurm.wait(lambda: trained(run) > begun, "another step")
        print(f"| {happens.__doc__} | {time.monotonic() - struck:.0f} s | {max(reached - begun, 0)} |")
        slurm.wait(lambda: slurm.job(job)["JobState"] in ENDED, "the end", 600)
        assert slurm.job(job)["JobState"] == "COMPLETED", slurm.story()
        restarts = int(slurm.job(job)["Restarts"])
        assert (begun > 0 and restarts == 1) or (restarts > 1 and happens is out_of_time)  # whose second start has as little time
        assert lines(run) == undisturbed
        assert not strays(slurm.hosts)
    finally:
        slurm.cancel(job)


def test_a_mistake_is_not_started_again(slurm, corpus, tmp_path):
    job = slurm.submit(*NODES, "launch/slurm.sbatch", corpus / "recipe.yaml", "--model.heads=3", f"--training.output={tmp_path / 'run'}")
    slurm.wait(lambda: slurm.job(job)["JobState"] in ENDED, "the end", 100)
    told = (slurm.folder / f"job-{job}.txt").read_text()
    assert slurm.job(job)["ExitCode"] == "2:0" and slurm.job(job)["Restarts"] == "0", told
    assert "model.heads = 3" in told, told


def test_through_deepspeeds_runner(slurm, corpus, tmp_path):
    """In the hosts that salloc got, launch/multinode.sh and the loop in it, and srun below."""
    loop = ["launch/multinode.sh", "--launcher", "slurm", "--restarts", "0", "--no_preflight", slurm.hosts.hostfile, corpus / "recipe.yaml"]
    words = ["salloc", *NODES, *loop, *OPTIONS, f"--training.output={tmp_path / 'run'}"]
    variables = VARIABLES | {"SLURM_CONF": str(slurm.folder / "slurm.conf")}
    succeeded(slurm.hosts.on(1, *words, **variables))
    train(2, [str(corpus / "recipe.yaml"), *OPTIONS], tmp_path / "one host")
    assert lines(tmp_path / "run") == lines(tmp_path / "one host")
    logs = [(tmp_path / "run" / "logs" / f"rank-0000{rank}.log").read_text() for rank in (0, 1)]
    assert [f"rank {rank} on host{rank + 1}," in log for rank, log in enumerate(logs)] == [True, True]
    assert slurm.hosts.on(1, *words, "--model.heads=3", **variables).returncode == 2
