"""What befalls hosts while a run goes on: the launch brings it to its end, with the losses of a run that nothing befell."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.distributed.ranks import train
from tests.faults.runs import lines
from tests.multinode.hosts import ENVIRONMENT, Hosts, hosts_of
from tests.multinode.struck import ENDING, SURVIVED, VARIABLES, Struck, strike, table

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900), pytest.mark.usefixtures("in_repository")]
GAP = 12  # steps between two faults
STEPS = GAP * (len(ENDING) + len(SURVIVED) + 1)
ALL = ["--checkpoint.every=10", "--deepspeed=ds_configs/zero1.json", "--schedule.kind=constant"]
OPTIONS, SHORT = [*ALL, f"--training.steps={STEPS}"], [*ALL, "--training.steps=60"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts of one slot each."""
    with hosts_of(1, 1) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> list[dict]:
    """The lines of the same two ranks on one host."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(2, [str(corpus / "recipe.yaml"), *OPTIONS], output)
    return lines(output)


def test_one_run_survives_them_all(hosts, corpus, undisturbed, tmp_path: Path):
    run, outcomes = Struck(hosts, corpus / "recipe.yaml", tmp_path / "run", OPTIONS), []
    try:
        for fault in (*SURVIVED, *ENDING):
            run.until(run.step() + 4)
            outcomes.append(strike(run, fault))
            print(outcomes[-1].row(), flush=True)
        run.finish(undisturbed)
    finally:
        run.clear()
        print(table(outcomes))


def test_torchrun_goes_on_without_a_host_that_died(hosts, corpus, undisturbed, tmp_path: Path):
    """With one rank instead of two: its losses differ by rounding alone from there on."""
    output = tmp_path / "run"
    words = ["launch/torchrun.sh", "1:2", "1", "host1", corpus / "recipe.yaml", "--watchdog.step=15", *SHORT, f"--training.output={output}"]
    agents = [subprocess.Popen(hosts.command(k, *words), cwd=REPOSITORY, env=os.environ | ENVIRONMENT | VARIABLES) for k in (1, 2)]
    try:
        deadline = time.monotonic() + 200
        while not (output / "metrics.jsonl").exists() or '"step": 15,' not in (output / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline and agents[0].poll() is None
            time.sleep(0.1)
        hosts.do("kill", 2)
        assert agents[0].wait(250) == 0
        strays = [line for line in hosts.processes(1) if "pretrain" in line or "watchdog" in line]
    finally:
        for agent in agents:
            agent.kill()
        hosts.on(1, "pkill", "-KILL", "-f", "pretrain.py")
        hosts.do("kill", 2)
        hosts.do("boot", 2)
    starts = [event["ranks"] for event in read_events(output) if event["event"] == "start"]
    assert [start.split()[0] for start in starts] == ["2", "1"] and strays == []
    losses = [line["loss"] for line in lines(output)]
    assert losses == pytest.approx([line["loss"] for line in undisturbed[: len(losses)]], rel=1e-5) and len(losses) == 60
