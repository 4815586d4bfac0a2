"""Runs on several hosts through the scripts of launch/ train like one rank."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import difference
from tests.distributed.ranks import train
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
