"""Two hosts of two ranks each, started by `deepspeed --hostfile` over pdsh and ssh, train like one host."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import difference
from tests.distributed.ranks import train

HOSTS = Path(__file__).with_name("hosts.sh")
TOOLS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "pdsh": "pdsh", "nsenter": "util-linux"}
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
SECONDS = 150


def missing() -> str | None:
    """Why hosts can't be made here."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    return None


@pytest.fixture(scope="module")
def hosts() -> Iterator[Path]:
    """The folder of two running hosts."""
    if reason := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder, open(Path(tempfile.gettempdir()) / "ngpt-test-hosts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # names and addresses are fixed: one set of hosts at a time
        try:
            subprocess.run([HOSTS, "up", folder, "2"], check=True, timeout=60)
            yield Path(folder)
        finally:
            subprocess.run([HOSTS, "down", folder], check=True, timeout=60)


def launch(command: list, **environment: str) -> None:
    """Run to the end; the test fails with what was printed if the command does."""
    command, variables = [str(part) for part in command], os.environ | ENVIRONMENT | environment
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, timeout=SECONDS, capture_output=True)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-5000:]


def test_two_hosts_train_like_one(hosts, corpus, in_repository, tmp_path):
    """Tensor ranks on a host, data ranks and their ZeRO-2 partitions across the hosts."""
    deepspeed, recipe = Path(sys.executable).with_name("deepspeed"), corpus / "recipe.yaml"
    layout = ["--parallel.tensor=2", "--deepspeed=ds_configs/zero2.json", f"--training.output={tmp_path / 'two'}"]
    (tmp_path / "environment").write_text("".join(f"{key}={value}\n" for key, value in ENVIRONMENT.items()))

    launch(
        [HOSTS, "on", hosts, 1, deepspeed, "--hostfile", hosts / "hostfile", "launch/pretrain.py", recipe, *layout],
        DS_ENV_FILE=str(tmp_path / "environment"),
    )

    logs = [(tmp_path / "two" / "logs" / f"rank-{rank:05}.log").read_text() for rank in range(4)]
    assert [f"rank {rank} on host{1 + rank // 2}," in log for rank, log in enumerate(logs)] == [True] * 4
    train(2, [str(recipe)], tmp_path / "one")
    found = difference(tmp_path / "two", tmp_path / "one")
    assert found.steps == 20 and found.clipped
    assert found.loss <= 1e-5
    assert found.grad_norm <= 1e-5
    assert found.weights <= 1e-5
