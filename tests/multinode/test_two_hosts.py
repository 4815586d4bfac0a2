"""Two hosts of two ranks each, started by launch/multinode.sh over pdsh and ssh, train like one host."""

import os
from collections.abc import Iterator

import pytest

from tests.distributed.layouts import difference
from tests.distributed.ranks import train
from tests.multinode.hosts import DEEPSPEED, Hosts, hosts_of, succeeded


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts of two slots each."""
    with hosts_of(2, 2) as hosts:
        yield hosts


def test_two_hosts_train_like_one(hosts, corpus, in_repository, tmp_path):
    """Tensor ranks on a host, data ranks and their ZeRO-2 partitions across the hosts."""
    recipe = corpus / "recipe.yaml"
    layout = ["--parallel.tensor=2", "--deepspeed=ds_configs/zero2.json", f"--training.output={tmp_path / 'two'}"]

    words = ["launch/multinode.sh", "--no_preflight", hosts.hostfile, recipe, *layout]
    succeeded(hosts.on(1, *words, PATH=f"{DEEPSPEED.parent}:{os.environ['PATH']}"))

    logs = [(tmp_path / "two" / "logs" / f"rank-{rank:05}.log").read_text() for rank in range(4)]
    assert [f"rank {rank} on host{1 + rank // 2}," in log for rank, log in enumerate(logs)] == [True] * 4
    train(2, [str(recipe)], tmp_path / "one")
    found = difference(tmp_path / "two", tmp_path / "one")
    assert found.steps == 20 and found.clipped
    assert found.loss <= 1e-5
    assert found.grad_norm <= 1e-5
    assert found.weights <= 1e-5
