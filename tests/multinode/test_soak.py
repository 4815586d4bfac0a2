"""Training on two hosts to which something happens every minute or two, by seed: at its end it has the losses of the undisturbed run.

NGPT_SOAK_MINUTES says for how long, NGPT_SOAK_SEED what happens when, NGPT_SOAK_TABLE a file for the table, which is printed too.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import train
from tests.faults.runs import lines
from tests.multinode.hosts import hosts_of
from tests.multinode.strikes import ENDING, SURVIVED, Outcome, all_asked_to_stop, strike, table
from tests.multinode.struck import Struck

MINUTES = float(os.environ.get("NGPT_SOAK_MINUTES", "60"))
SEED = int(os.environ.get("NGPT_SOAK_SEED", "1"))
EVERY = 50  # steps between two checkpoints
OPTIONS = [f"--checkpoint.every={EVERY}", "--schedule.kind=constant", "--deepspeed=ds_configs/zero1.json"]
ENDLESS = "--training.steps=1000000"  # how far it comes depends on the machine


def faults(luck: random.Random):
    """All of them in an order drawn anew, again and again."""
    while True:
        yield from luck.sample([*ENDING, *SURVIVED], len(ENDING) + len(SURVIVED))


def soak(run: Struck, luck: random.Random, outcomes: list[Outcome]) -> None:
    """Strike until time is up; half a minute to a minute and a half lie between the end of one fault and the next."""
    until = time.monotonic() + 60 * MINUTES
    for fault in faults(luck):
        rest = luck.uniform(30, 90)
        if time.monotonic() + rest > until:
            return
        time.sleep(rest)
        outcomes.append(strike(run, fault))
        print(outcomes[-1].row(), flush=True)


@pytest.mark.soak
@pytest.mark.timeout(60 * (3 * MINUTES + 20))
def test_a_run_to_which_things_happen(corpus, in_repository, tmp_path):
    recipe, outcomes, began = str(corpus / "recipe.yaml"), [], time.monotonic()
    with hosts_of(1, 1) as hosts:
        run = Struck(hosts, corpus / "recipe.yaml", tmp_path / "run", [*OPTIONS, ENDLESS])
        try:
            run.until(1)
            soak(run, random.Random(SEED), outcomes)
            steps = f"--training.steps={(run.step() // EVERY + 4) * EVERY}"
            all_asked_to_stop(run, steps)
            minutes = (time.monotonic() - began) / 60
            run.wait(lambda: run.process.poll() is not None, "the end")
            train(2, [recipe, *OPTIONS, steps], tmp_path / "undisturbed", seconds=60 * (2 * MINUTES + 10))
            run.finish(lines(tmp_path / "undisturbed"))
        finally:
            run.clear()
    head = f"{minutes:.0f} minutes, seed {SEED}, {len(outcomes)} faults, {run.step()} steps, losses equal to the last bit"
    told = f"{head}\n\n{table(outcomes)}\n"
    print(told)
    if place := os.environ.get("NGPT_SOAK_TABLE"):
        Path(place).write_text(told)
