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
EVERY, KEEP_EVERY, OBSERVED = 4, 50, 10
KEYS = {"checkpoint.every": EVERY, "checkpoint.keep_every": KEEP_EVERY, "monitor.every": OBSERVED, "schedule.kind": "constant"}
ENDLESS = 100_000  # steps, while it is killed; how far it comes depends on the machine
LAYOUTS = {"ZeRO-2": zero(2), "tensor 2": cut(2)}


def strike_while_saving(run: Run, luck: random.Random) -> str:
    """Wait for a checkpoint that is being written or removed, and a moment more."""
    folder, deadline = run.output / "checkpoints", time.monotonic() + 60
    wanted = luck.choice([".partial", ".partial", ".partial", ".obsolete"])
    while time.monotonic() < deadline:
        assert all(p.is_alive() for p in run.processes), run.story()
        if folder.is_dir() and any(path.name.endswith(wanted) for path in folder.iterdir()):
            time.sleep(luck.uniform(0, 0.04))
            return f"while {wanted} was there"
    raise AssertionError(f"it never saved\n{run.story()}")


def strike_at_random(run: Run, luck: random.Random) -> str:
    """Any moment, from before the first import to steps between two checkpoints."""
    time.sleep(luck.uniform(0, 6))
    return "at random"


def kill_again_and_again(arguments: list[str], output: Path, kills: int, seed: int) -> list[str]:
    """Start, kill, start again; returns how each went."""
    luck, told = random.Random(seed), []
    for _ in range(kills):
        run = Run(2, [*arguments, f"--training.steps={ENDLESS}"], output)
        told.append(luck.choice([strike_while_saving, strike_while_saving, strike_at_random])(run, luck))
        assert all(p.is_alive() for p in run.processes), run.story()
        run.kill()
    return told


def check(corpus: Path, layout: dict, directory: Path, kills: int, seed: int) -> None:
    killed, undisturbed = directory / "killed", directory / "undisturbed"
    arguments = [str(corpus / "recipe.yaml"), *options(layout | KEYS)]
    told = kill_again_and_again(arguments, killed, kills, seed)
    print(f"{len(told)} kills: " + ", ".join(f"{told.count(moment)} {moment}" for moment in sorted(set(told))))
    steps = (max(line["step"] for line in lines(killed)) // EVERY + 3) * EVERY
    for output in (killed, undisturbed):
        train(2, [*arguments, f"--training.steps={steps}"], output, seconds=900)
    assert lines(killed) == lines(undisturbed)
    of_steps, observed = (set(range(first, steps + 1, first)) for first in (1, OBSERVED))
    assert [(line["step"], "loss" in line) for line in lines(killed)] == sorted(
        [(step, True) for step in of_steps] + [(step, False) for step in observed], key=lambda place: (place[0], not place[1])
    )
    kept = {*range(100, steps, 100), steps - EVERY, steps}  # multiples of 50 at which it saves, and the two newest
    assert checkpoints(killed) == checkpoints(undisturbed) == ["latest", *(f"step-{step:08}" for step in sorted(kept))]


def test_a_few_kills(corpus, tmp_path):
    check(corpus, LAYOUTS["ZeRO-2"], tmp_path, kills=4, seed=1)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LAYOUTS)
def test_many_kills(corpus, tmp_path, name):
    check(corpus, LAYOUTS[name], tmp_path, kills=18, seed=len(name))
