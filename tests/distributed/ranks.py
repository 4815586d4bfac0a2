"""Runs `launch/pretrain.py`'s entry point on n ranks, each a process with a launcher's environment variables.

Starting processes that import torch and DeepSpeed is what costs: a fork server imports them once, and every rank of every run is a
fork of it, with no state left of the run before.
"""

import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.preload"])


class Run:
    """A training run under way on `ranks` ranks; `arguments` are those of launch/pretrain.py.

    `before`, a function of a module, is called on each rank before the entry point, with the run directory: to watch, or to break.
    With `others`, further runs as (arguments, output), the same processes do them one after another.
    """

    def __init__(
        self,
        ranks: int,
        arguments: list[str],
        output: Path,
        before: Callable[[Path], None] | None = None,
        others: Sequence[tuple[list[str], Path]] = (),
    ):
        self.output = output
        turns = [(_free_port(), [*given, f"--training.output={out}"], out) for given, out in [(arguments, output), *others]]
        self.processes = [
            _CONTEXT.Process(target=_rank, args=(rank, ranks, turns, output, before), daemon=True) for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 150) -> list[int]:
        """The ranks' exit statuses. Once one has failed the others get a moment; whoever is left when time is up is killed."""
        deadline = time.monotonic() + seconds
        while any(p.is_alive() for p in self.processes):
            if any(p.exitcode not in (None, 0) for p in self.processes):
                deadline = min(deadline, time.monotonic() + 5)
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.02)
        return [p.exitcode for p in self.processes]

    def kill(self) -> None:
        """SIGKILL to every rank."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def console(self, rank: int = 0) -> str:
        """What the rank showed on its terminal."""
        path = Path(str(self.output) + f".rank{rank}")
        return path.read_text() if path.exists() else ""

    def story(self) -> str:
        """The end of every rank's terminal and log, for a failure's message."""
        parts = [f"rank {r} terminal:\n{self.console(r)[-2000:]}" for r in range(len(self.processes))]
        parts += [f"{log}:\n{log.read_text()[-2000:]}" for log in sorted(self.output.glob("logs/*.log"))]
        return "\n".join(parts)


def train(
    ranks: int,
    arguments: list[str],
    output: Path,
    before: Callable[[Path], None] | None = None,
    seconds: float = 150,
    others: Sequence[tuple[list[str], Path]] = (),
) -> Run:
    """A finished run; fails the test that asked for it if a rank failed."""
    run = Run(ranks, arguments, output, before, others)
    statuses = run.wait(seconds)
    assert statuses == [0] * ranks, f"exit statuses {statuses}\n{run.story()}"
    return run


def _rank(
    rank: int, ranks: int, turns: list[tuple[int, list[str], Path]], output: Path, before: Callable[[Path], None] | None
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
    file = os.open(f"{output}.rank{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from megatron_ngpt.training.entry import main

    for port, arguments, of_turn in turns:
        os.environ["MASTER_PORT"] = str(port)
        if before:
            before(of_turn)
        if status := main(arguments):
            sys.exit(status)


def _free_port() -> int:
    """A port that nobody listens on, and that no connection will be given before it is used: below those that Linux hands out."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
