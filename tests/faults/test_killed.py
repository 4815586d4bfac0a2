"""Training is killed again and again, at moments drawn at random and while it saves: each start goes on by itself, and the whole reads
like the undisturbed run."""

import random
import time
from pathlib import Path

import pytest

from tests.distributed.layouts import cut, zero
from tests.distributed.ranks import Run, train
from tests.faults.runs import checkpoints, lines, options

pytestmark = pytest.mark.usefixtures("in_repository")
EVERY, KEEP_EVERY = 4, 50
KEYS = {"checkpoint.every": EVERY, "checkpoint.keep_every": KEEP_EVERY}
LAYOUTS = {"ZeRO-2": zero(2), "tensor 2": cut(2)}


def strike_while_saving(run: Run, luck: random.Random) -> str:
    """Wait for a checkpoint that is being written, and a moment more."""
    folder, deadline = run.output / "checkpoints", time.monotonic() + luck.uniform(1, 6)
    wanted = luck.choice([".partial", ".partial", ".partial", ".obsolete"])
    while time.monotonic() < deadline and any(p.is_alive() for p in run.processes):
        if folder.is_dir() and any(name.endswith(wanted) for name in checkpoints_now(folder)):
            time.sleep(luck.uniform(0, 0.04))
            return f"while {wanted} was there"
    return "at some moment"


def strike_at_random(run: Run, luck: random.Random) -> str:
    """Any moment, from before the first import to steps between two checkpoints."""
    time.sleep(luck.uniform(0, 6))
    return "at random"


def checkpoints_now(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def kill_again_and_again(arguments: list[str], output: Path, kills: int, seed: int) -> list[str]:
    """Start, kill, start again, until the run has been killed so many times under way; then let it finish. Returns how each went."""
    luck, told = random.Random(seed), []
    while len(told) < kills:
        run = Run(2, arguments, output)
        moment = luck.choice([strike_while_saving, strike_while_saving, strike_at_random])(run, luck)
        alive = all(p.is_alive() for p in run.processes)
        run.kill()
        if not alive:
            assert [p.exitcode for p in run.processes] == [0, 0], run.story()
            return told
        told.append(moment)
    train(2, arguments, output, seconds=600)
    return told


def check(corpus: Path, layout: dict, directory: Path, steps: int, kills: int, seed: int) -> None:
    arguments = [str(corpus / "recipe.yaml"), *options(layout | KEYS | {"training.steps": steps})]
    train(2, arguments, directory / "undisturbed", seconds=600)
    told = kill_again_and_again(arguments, directory / "killed", kills, seed)
    print(f"{len(told)} kills: " + ", ".join(f"{told.count(moment)} {moment}" for moment in sorted(set(told))))
    assert len(told) == kills
    assert lines(directory / "killed") == lines(directory / "undisturbed")
    assert [line["step"] for line in lines(directory / "killed")] == list(range(1, steps + 1))
    assert checkpoints(directory / "killed") == checkpoints(directory / "undisturbed")
    kept = {*range(100, steps, 100), steps - EVERY, steps}  # multiples of 50 at which it saves, and the two newest
    assert checkpoints(directory / "killed") == ["latest", *(f"step-{step:08}" for step in sorted(kept))]


def test_a_few_kills(corpus, tmp_path):
    check(corpus, LAYOUTS["ZeRO-2"], tmp_path, steps=104, kills=4, seed=1)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", LAYOUTS)
def test_many_kills(corpus, tmp_path, name):
    check(corpus, LAYOUTS[name], tmp_path, steps=240, kills=18, seed=len(name))
