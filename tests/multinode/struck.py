"""A run on two hosts through launch/multinode.sh, to which something is to happen."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.faults.runs import lines
from tests.multinode.hosts import ENVIRONMENT, VARIABLES, Hosts

LIMIT = 20  # seconds of watchdog.step
TAIL = 1 << 15  # bytes, of some lines
PATIENCE = 200.0  # seconds until a run must train again
OURS = "launch/pretrain.py|megatron_ngpt|deepspeed|multinode.sh|pdsh"


class Struck:
    """A run on both hosts of one rank each, started from the first; `options` come behind the recipe, `variables` into the environment."""

    def __init__(self, hosts: Hosts, recipe: Path, output: Path, options: list[str], limit: int = LIMIT, **variables: str):
        self.hosts, self.output, self.shown = hosts, output, output.with_suffix(".txt")
        self._environment = os.environ | ENVIRONMENT | VARIABLES | variables
        self.reached = 0  # the newest step that was seen
        self._words = [hosts.hostfile, recipe, f"--watchdog.step={limit}", *options, f"--training.output={output}"]
        self.start()

    def start(self, *more: str) -> None:
        """By hand."""
        self.process = subprocess.Popen(
            self.hosts.command(1, "launch/multinode.sh", "--no_preflight", "--pause", "1", *self._words, *more),
            cwd=REPOSITORY, env=self._environment, stdout=self.shown.open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait(self, there: Callable[[], bool], what: str) -> None:
        """Until it is so; fails with what the terminal shows if that takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not there():
            assert time.monotonic() < deadline, f"not in {PATIENCE:.0f} s: {what}\n{self.story()}"
            self.reached = max(self.reached, self.step())
            time.sleep(0.1)

    def story(self) -> str:
        """The end of what the terminal shows, and what runs where."""
        there = "\n".join(f"host{k}: {line[:200]}" for k in (1, 2) for line in self.strays(k))
        return f"{self.shown.read_text(errors='replace')[-6000:]}\n{there}"

    def step(self) -> int:
        """The newest in metrics.jsonl."""
        with suppress(OSError), (self.output / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            if found := re.findall(rb'"step": (\d+),', file.read()):
                return int(found[-1])
        return 0

    def until(self, step: int) -> None:
        """It has trained so far."""
        self.wait(lambda: self.step() >= step or self.process.poll() is not None, f"step {step}")
        assert self.step() >= step, self.story()

    def events(self, kind: str) -> list[dict]:
        """So far, of this kind."""
        return [event for event in read_events(self.output) if event["event"] == kind]

    def found(self, text: str, before: int) -> None:
        """Wait for one more line of a watchdog than there was, and look for a text in it."""
        self.wait(lambda: len(self.events("watchdog")) > before, "a line of the watchdog")
        told = self.events("watchdog")[-1]["found"]
        assert len(self.events("watchdog")) == before + 1 and text in told, told

    def signal(self, k: int, number: signal.Signals, pattern: str = "launch/pretrain.py --local_rank") -> None:
        """To the processes on host k whose command line has this in it; by default its rank."""
        done = self.hosts.on(k, "pkill", f"-{number.value}", "-f", pattern)
        assert done.returncode == 0, self.story()

    def strays(self, k: int) -> list[str]:
        """What runs on host k of the launch, its ranks and their watchdogs."""
        return [line for line in self.hosts.processes(k) if re.search(OURS, line)] if (self.hosts.folder / f"host{k}.pid").exists() else []

    def no_rank(self) -> None:
        """Wait until no rank is left on any host."""
        self.wait(lambda: not any("pretrain.py --local_rank" in line for k in (1, 2) for line in self.strays(k)), "no rank is left")

    def finish(self, undisturbed: list[dict]) -> None:
        """It comes to its end like the undisturbed run, and leaves nothing behind."""
        self.ends()
        assert lines(self.output) == undisturbed

    def ends(self, status: int = 0) -> None:
        """The launch ends with this status, and leaves no process and no half file."""
        self.wait(lambda: self.process.poll() is not None, "the end")
        assert self.process.returncode == status, self.story()
        assert [path for path in self.output.rglob("*") if path.suffix in (".partial", ".obsolete", ".tmp")] == []
        assert [self.strays(k) for k in (1, 2)] == [[], []]

    def clear(self) -> None:
        """End whatever is left of it."""
        self.process.kill()
        for k in (1, 2):
            self.hosts.on(k, "pkill", "-KILL", "-f", OURS)
        self.process.wait()
