"""What can befall a run on two hosts, and what it costs."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from megatron_ngpt.monitor.events import read_events
from tests.multinode.hosts import succeeded
from tests.multinode.struck import Struck


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


def deepspeed_killed(run: Struck) -> None:
    """SIGKILL of `deepspeed` itself: what it leaves is told to end, and all stop with a checkpoint."""
    run.signal(1, signal.SIGKILL, "bin/deepspeed --hostfile")


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
    _cut(run, 8)  # TCP tries again after 12.6 at most


def cable_cut_and_survived(run: Struck) -> None:
    """Cable cut for 20 s, a limit of 60."""
    _cut(run, 20)  # TCP tries again after 25.4


def cable_cut_as_long_as_the_limit(run: Struck) -> None:
    """Cable cut for 20 s, a limit of 20."""
    before = len(run.events("watchdog"))
    _cut(run, 20)
    run.found("no word from rank 1 on host2", before)


def _cut(run: Struck, seconds: float) -> None:
    run.hosts.do("cut", 2)
    try:
        time.sleep(seconds)
    finally:
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


def first_host_killed(run: Struck) -> float:
    """Host of the launch and of rank 0 without power until the other rank has ended, then booted; the launch is started again by hand."""
    run.hosts.do("kill", 1)
    try:
        run.no_rank()
        ended = time.time()
        run.wait(lambda: run.process.poll() is not None, "the launch is gone too")
    finally:
        run.hosts.do("boot", 1)
    run.start()
    return ended


def disk_full(run: Struck) -> float:
    """No room for checkpoints on one host until one has failed, then room again."""
    failed, folder, room = len(run.events("checkpoint_failed")), run.output / "checkpoints", run.hosts.folder / "room"
    room.mkdir(exist_ok=True)
    run.wait(lambda: run.events("checkpoint") != [], "the first checkpoint")
    small = f"mount -t tmpfs -o size=64k tmpfs {room} && mkdir {room}/files {room}/work"
    over = f"mount -t overlay -o lowerdir={folder},upperdir={room}/files,workdir={room}/work overlay {folder}"
    succeeded(run.hosts.on(2, "sh", "-c", f"{small} && {over}"))
    try:
        run.wait(lambda: len(run.events("checkpoint_failed")) > failed, "a checkpoint that fails")
    finally:
        succeeded(run.hosts.on(2, "umount", "--lazy", folder, room))
    told = run.events("checkpoint_failed")[failed]
    assert "No space left on device" in told["error"], told
    assert f"{told['error']}; training goes on, the last good checkpoint is" in run.shown.read_text()
    run.wait(lambda: run.events("checkpoint")[-1]["step"] > told["step"], "a checkpoint after it")
    return told["time"]


def all_asked_to_stop(run: Struck, *more: str) -> None:
    """SIGTERM to the launch: it ends with a checkpoint, and is started again by hand, with more options."""
    run.signal(1, signal.SIGTERM, "^bash launch/multinode.sh")
    run.wait(lambda: run.process.poll() is not None, "the end of the launch")
    assert run.process.returncode == 75, run.story()
    saved = run.output / "checkpoints" / f"step-{run.events('stop')[-1]['step']:08}"
    assert saved.is_dir() and list(run.output.glob("owner-*")) == [], run.story()  # already, when the launch has ended
    run.start(*more)


ENDING = [
    worker_killed, worker_stopped, launcher_killed, deepspeed_killed, cable_cut, cable_cut_as_long_as_the_limit, host_killed,
    first_host_killed, all_asked_to_stop,
]  # fmt: skip
SURVIVED = [cable_cut_briefly, cable_slow, disk_full]


@dataclass(frozen=True)
class Outcome:
    """What a fault cost: seconds from the strike to the first word of it (None: there was none) and to the next step's line, and steps done
    twice."""

    fault: str
    step: int
    noticed: float | None
    again: float
    lost: int

    def row(self) -> str:
        """Of a table."""
        noticed = "never" if self.noticed is None else f"{self.noticed:.1f} s"
        return f"| {self.fault} | {self.step} | {noticed} | {self.again:.0f} s | {self.lost} |"


def strike(run: Struck, fault: Callable[[Struck], float | None]) -> Outcome:
    """Let it happen, and wait until the run trains again. A fault of which events.jsonl does not tell returns when it was noticed."""
    starts, told = len(run.events("start")), len(read_events(run.output))
    run.reached = at = run.step()
    words, struck = " ".join(fault.__doc__.partition(":")[0].rstrip(".").split()), time.time()
    noticed = fault(run)
    if fault in (*SURVIVED, cable_cut_and_survived):
        run.until(run.step() + 5)
        assert len(run.events("start")) == starts, run.story()
        return Outcome(words, at, noticed and noticed - struck, time.time() - struck, 0)
    run.wait(lambda: len(run.events("start")) > starts, "another start")
    begun = run.events("start")[-1]["step"]
    lost = max(run.reached, begun) - begun
    run.until(begun + 1)
    again = time.time()
    noticed = noticed or next(event["time"] for event in read_events(run.output)[told:] if event["event"] in ("watchdog", "stop"))
    return Outcome(words, at, noticed - struck, again - struck, lost)


def table(outcomes: list[Outcome]) -> str:
    """All of them, in Markdown."""
    head = "| fault | at step | noticed after | trains again after | steps lost |\n| --- | --- | --- | --- | --- |"
    return "\n".join([head, *(outcome.row() for outcome in outcomes)])
