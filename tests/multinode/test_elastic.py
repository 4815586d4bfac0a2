"""A host that is lost for good: launch/torchrun.sh goes on with those that are left, and with another one that comes in its place."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import difference
from tests.distributed.ranks import train
from tests.multinode.befall import environment, unhurried
from tests.multinode.hosts import ENVIRONMENT, VARIABLES, Hosts, hosts_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.usefixtures("in_repository")]
STEPS = 120
OPTIONS = ["--checkpoint.every=10", "--deepspeed=ds_configs/zero1.json", "--schedule.kind=constant", f"--training.steps={STEPS}"]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts of one slot each."""
    with hosts_of(1, 1, 1) as hosts:
        yield hosts


class Agents:
    """One of torchrun's on each host, which go on with two hosts or three."""

    def __init__(self, hosts: Hosts, recipe: Path, output: Path):
        self.hosts, self.output, self.shown = hosts, output, output.with_suffix(".txt")
        self._words = ["launch/torchrun.sh", "2:3", "1", "host1", recipe, "--watchdog.step=20", *OPTIONS, f"--training.output={output}"]
        self._environment = os.environ | ENVIRONMENT | VARIABLES | environment(unhurried, output.with_name("site"))
        self.processes = {k: self.start(k) for k in (1, 2, 3)}

    def start(self, k: int) -> subprocess.Popen:
        command, shown = self.hosts.command(k, *self._words), self.shown.open("ab")
        return subprocess.Popen(command, cwd=REPOSITORY, env=self._environment, stdout=shown, stderr=subprocess.STDOUT)

    def starts(self) -> list[tuple[int, int]]:
        """Ranks and first step of every start."""
        return [(int(event["layout"].split()[0]), event["step"]) for event in read_events(self.output) if event["event"] == "start"]

    def until(self, there: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, f"{self.starts()}\n{self.shown.read_text(errors='replace')[-8000:]}"
            time.sleep(0.1)

    def step(self) -> int:
        path = self.output / "metrics.jsonl"
        return path.read_text().count('"loss"') if path.exists() else 0


def test_a_host_is_lost_and_another_takes_its_place(hosts, corpus, tmp_path):
    run = Agents(hosts, corpus / "recipe.yaml", tmp_path / "run")
    try:
        run.until(lambda: run.step() >= 14)
        struck, reached = time.time(), run.step()
        hosts.do("kill", 3)
        run.until(lambda: len(run.starts()) == 2)
        begun = run.starts()[-1]
        assert begun[0] == 2, run.starts()
        run.until(lambda: run.step() > begun[1])
        told = [event["time"] - struck for event in read_events(run.output) if event["event"] == "watchdog" and event["time"] > struck]
        print(f"two hosts: noticed {told}, train again after {time.time() - struck:.0f} s, {reached - begun[1]} steps lost")
        hosts.do("boot", 3)
        struck = time.time()
        run.processes[3] = run.start(3)
        run.until(lambda: run.starts()[-1][0] == 3 and len(run.starts()) > 2)
        begun = run.starts()[-1]
        run.until(lambda: run.step() > begun[1])
        print(f"three hosts train again after {time.time() - struck:.0f} s; starts: {run.starts()}")
        run.until(lambda: all(agent.poll() is not None for agent in run.processes.values()))
        assert [agent.returncode for agent in run.processes.values()] == [0, 0, 0], run.shown.read_text(errors="replace")[-8000:]
        run.until(lambda: not any("torchrun" in line or "megatron" in line for k in (1, 2, 3) for line in hosts.processes(k)), 30)
    finally:
        for k, agent in run.processes.items():
            hosts.on(k, "pkill", "-KILL", "-f", "torchrun|pretrain.py")
            agent.kill()
    assert [path for path in run.output.rglob("*") if path.suffix in (".partial", ".obsolete", ".tmp")] == []
    train(1, [str(corpus / "recipe.yaml"), *OPTIONS], tmp_path / "alone", seconds=400)
    found = difference(run.output, tmp_path / "alone")
    print(found)
    assert found.steps == STEPS and found.loss <= 1e-5 and found.grad_norm <= 1e-5 and found.weights <= 1e-5
