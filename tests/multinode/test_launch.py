"""Runs on several hosts through the scripts of launch/ train like one rank."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import difference
from tests.distributed.ranks import train
from tests.multinode.befall import environment, unhurried
from tests.multinode.hosts import ENVIRONMENT, VARIABLES, Hosts, hosts_of, succeeded

OWN = {"NGPT_MAX_RESTARTS": "0"}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts of one slot each."""
    with hosts_of(1, 1, 1) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> Path:
    """The same recipe on one rank."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(1, [str(corpus / "recipe.yaml"), f"--deepspeed={REPOSITORY / 'ds_configs/zero0.json'}"], output)
    return output


def assert_same(run: Path, alone: Path, ranks: int) -> None:
    """20 steps with one rank's losses, gradient norms and weights; rank k was on host k + 1."""
    logs = [(run / "logs" / f"rank-{rank:05}.log").read_text() for rank in range(ranks)]
    assert [f"rank {rank} on host{1 + rank}," in log for rank, log in enumerate(logs)] == [True] * ranks
    found = difference(run, alone)
    assert found.steps == 20 and found.loss <= 1e-5 and found.grad_norm <= 1e-5 and found.weights <= 1e-5


@pytest.mark.heavy
def test_three_hosts_through_multinode_sh(hosts, alone, corpus, tmp_path):
    words = [hosts.hostfile, corpus / "recipe.yaml", "--deepspeed=ds_configs/zero1.json"]
    done = succeeded(hosts.on(1, "launch/multinode.sh", *words, f"--training.output={tmp_path / 'run'}", seconds=240, **VARIABLES))
    assert "3 ranks can train on 3 hosts" in done.stdout
    assert "3 ranks on 3 hosts, on CPUs, led by host1; starting" in done.stdout
    assert_same(tmp_path / "run", alone, 3)


@pytest.mark.heavy
def test_three_hosts_through_open_mpi(hosts, alone, corpus, tmp_path):
    words = ["--launcher", "openmpi", "--launcher_args", "--allow-run-as-root", "--no_preflight", hosts.hostfile, corpus / "recipe.yaml"]
    options = ["--deepspeed=ds_configs/zero1.json", f"--training.output={tmp_path / 'run'}"]
    done = succeeded(hosts.on(1, "launch/multinode.sh", *words, *options, seconds=240, **VARIABLES))
    assert "3 ranks, on CPUs, led by host1; starting" in done.stdout
    assert_same(tmp_path / "run", alone, 3)


@pytest.mark.long
def test_three_hosts_through_mpich(hosts, alone, corpus, tmp_path):
    """DeepSpeed's impi runner speaks to the mpirun of MPICH, of which Intel's is made."""
    if not (mpirun := shutil.which("mpirun.mpich")):
        pytest.skip("not installed: mpich")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpirun").write_text(f'#!/bin/sh\nexec {mpirun} "$@"\n')
    (tmp_path / "bin" / "mpirun").chmod(0o755)
    loop = ["launch/multinode.sh", "--launcher", "impi", "--restarts", "0", "--no_preflight"]
    words = [*loop, hosts.hostfile, corpus / "recipe.yaml", "--deepspeed=ds_configs/zero1.json"]
    variables = {"PATH": f"{tmp_path / 'bin'}:{VARIABLES['PATH']}"}
    done = succeeded(hosts.on(1, *words, f"--training.output={tmp_path / 'run'}", seconds=240, **variables))
    assert "3 ranks, on CPUs, led by host1; starting" in done.stdout
    assert_same(tmp_path / "run", alone, 3)
    assert hosts.on(1, *words, "--model.heads=3", **variables).returncode == 2


@pytest.mark.heavy
def test_two_hosts_through_torchrun_sh_without_ssh(hosts, alone, corpus, tmp_path):
    words = ["launch/torchrun.sh", "2", "1", "host1", corpus / "recipe.yaml", f"--training.output={tmp_path / 'run'}"]
    agents = [
        subprocess.Popen(hosts.command(k, *words), cwd=REPOSITORY, env=os.environ | ENVIRONMENT | VARIABLES | OWN) for k in (1, 2)
    ]
    try:
        assert [agent.wait(240) for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
    found = difference(tmp_path / "run", alone)
    assert found.steps == 20 and found.loss <= 1e-5 and found.grad_norm <= 1e-5 and found.weights <= 1e-5


@pytest.mark.long
def test_a_launcher_killed_without_ssh_stops_all_hosts_with_a_checkpoint(hosts, alone, corpus, tmp_path):
    run, site = tmp_path / "run", environment(unhurried, tmp_path / "site")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("host1 slots=1\nhost2 slots=1\n")

    def start() -> list[subprocess.Popen]:
        words = ["--no_ssh", "--pause", "1", "--master_addr", "host1", hostfile, corpus / "recipe.yaml", f"--training.output={run}"]
        given = {"cwd": REPOSITORY, "env": os.environ | ENVIRONMENT | VARIABLES | site, "stdout": subprocess.DEVNULL}
        option = "--deepspeed=ds_configs/zero1.json"
        return [
            subprocess.Popen(hosts.command(k + 1, "launch/multinode.sh", "--node_rank", k, *words, option), **given) for k in (0, 1)
        ]

    loops, deadline = start(), time.monotonic() + 100
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("loss") < 4:
        assert time.monotonic() < deadline and all(loop.poll() is None for loop in loops)
        time.sleep(0.1)
    assert hosts.on(2, "pkill", "-KILL", "-f", "bin/deepspeed").returncode == 0
    assert [loop.wait(100) for loop in loops] == [75, 75]
    assert [event["event"] for event in read_events(run)].count("stop") == 1
    assert [loop.wait(200) for loop in start()] == [0, 0]
    assert_same(run, alone, 2)
