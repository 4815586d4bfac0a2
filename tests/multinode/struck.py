"""A run on two hosts through launch/multinode.sh, and what can befall it there."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.faults.runs import lines
from tests.multinode.hosts import ENVIRONMENT, VARIABLES, Hosts

LIMIT = 20  # seconds of watchdog.step
CUT = 8.0  # seconds that a cable is out: TCP tries again after 12.6 at most, and after 25.4 if it were 13
TAIL = 1 << 15  # bytes, of some lines
PATIENCE = 200.0  # seconds until a run must train again
OURS = "launch/pretrain.py|megatron_ngpt|deepspeed|multinode.sh|pdsh"


class Struck:
    """A run on both hosts of one rank each, started from the first; `options` come behind the recipe."""

    def __init__(self, hosts: Hosts, recipe: Path, output: Path, options: list[str]):
        self.hosts, self.output, self.shown = hosts, output, output.with_suffix(".txt")
        self.reached = 0  # the newest step that was seen
        self._words = [hosts.hostfile, recipe, f"--watchdog.step={LIMIT}", *options, f"--training.output={output}"]
        self.start()

    def start(self, *more: str) -> None:
        """By hand."""
        self.process = subprocess.Popen(
            self.hosts.command(1, "launch/multinode.sh", "--no_preflight", "--pause", "1", *self._words, *more),
            cwd=REPOSITORY, env=os.environ | ENVIRONMENT | VARIABLES, stdout=self.shown.open("ab"), stderr=subprocess.STDOUT,
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
        self.wait(lambda: self.process.poll() is not None, "the end")
        assert self.process.returncode == 0, self.story()
        assert lines(self.output) == undisturbed
        assert [path for path in self.output.rglob("*") if path.suffix in (".partial", ".obsolete", ".tmp")] == []
        assert [self.strays(k) for k in (1, 2)] == [[], []]

    def clear(self) -> None:
        """End whatever is left of it."""
        self.process.kill()
        for k in (1, 2):
            self.hosts.on(k, "pkill", "-KILL", "-f", OURS)
        self.process.wait()


def worker_killed(run: Struck) -> None:
    """SIGKILL of a rank."""
    before = len(run.events("watchdog"))
    run.signal(2, signal.SIGKILL)
    run.found("rank 1 on host2 was ended by SIGKILL", before)


def worker_stopped(run: Struck) -> None:
    """SIGSTOP of a rank."""
    before = len(run.events("watchdog"))
    run.signal(2, signal.SIGSTOP)
    run.found("rank 1 on host2 is behind", before)


def launcher_killed(run: Struck) -> None:
    """SIGKILL of a host's launcher: its rank finds it gone, and all stop with a checkpoint."""
    before = len(run.events("stop"))
    run.signal(2, signal.SIGKILL, "deepspeed.launcher.launch")
    run.wait(lambda: len(run.events("stop")) > before, "a stop")


def cable_cut(run: Struck) -> None:
    """Cable cut until every rank has ended, then mended."""
    before = len(run.events("watchdog"))
    run.hosts.do("cut", 2)
    try:
        run.found("no word from rank 1 on host2", before)
        run.no_rank()
    finally:
        run.hosts.do("mend", 2)


def cable_cut_briefly(run: Struck) -> None:
    """Cable cut for 8 s."""
    run.hosts.do("cut", 2)
    time.sleep(CUT)
    run.hosts.do("mend", 2)


def cable_slow(run: Struck) -> None:
    """Cable of 20 Mbit/s for 20 s."""
    run.hosts.do("slow", 2, "20mbit")
    time.sleep(20)
    run.hosts.do("mend", 2)


def host_killed(run: Struck) -> None:
    """Host without power until the others have noticed, then booted."""
    before = len(run.events("watchdog"))
    run.hosts.do("kill", 2)
    try:
        run.found("rank 1 on host2", before)
    finally:
        run.hosts.do("boot", 2)


def all_asked_to_stop(run: Struck, *more: str) -> None:
    """SIGTERM to the launch: it ends with a checkpoint, and is started again by hand, with more options."""
    run.signal(1, signal.SIGTERM, "^bash launch/multinode.sh")
    run.wait(lambda: run.process.poll() is not None, "the end of the launch")
    assert run.process.returncode == 75, run.story()
    run.no_rank()
    run.start(*more)


ENDING = [worker_killed, worker_stopped, launcher_killed, cable_cut, host_killed, all_asked_to_stop]
SURVIVED = [cable_cut_briefly, cable_slow]


@dataclass(frozen=True)
class Outcome:
    """What a fault cost: seconds from the strike to the first word of it and to the next step's line, and steps done twice. None: the
    run went on as if nothing was."""

    fault: str
    step: int
    noticed: float | None
    again: float
    lost: int

    def row(self) -> str:
        """Of a table."""
        noticed = "not ended" if self.noticed is None else f"{self.noticed:.1f} s"
        return f"| {self.fault} | {self.step} | {noticed} | {self.again:.0f} s | {self.lost} |"


def strike(run: Struck, fault: Callable[[Struck], None]) -> Outcome:
    """Let it happen, and wait until the run trains again."""
    starts, told = len(run.events("start")), len(read_events(run.output))
    run.reached = at = run.step()
    words, struck = " ".join(fault.__doc__.partition(":")[0].rstrip(".").split()), time.time()
    fault(run)
    if fault in SURVIVED:
        run.until(run.step() + 5)
        assert len(run.events("start")) == starts, run.story()
        return Outcome(words, at, None, time.time() - struck, 0)
    run.wait(lambda: len(run.events("start")) > starts, "another start")
    begun = run.events("start")[-1]["step"]
    lost = max(run.reached, begun) - begun
    run.until(begun + 1)
    word = next(event for event in read_events(run.output)[told:] if event["event"] in ("watchdog", "stop"))
    return Outcome(words, at, word["time"] - struck, time.time() - struck, lost)


def table(outcomes: list[Outcome]) -> str:
    """All of them, in Markdown."""
    head = "| fault | at step | noticed after | trains again after | steps lost |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, *(outcome.row() for outcome in outcomes)])
