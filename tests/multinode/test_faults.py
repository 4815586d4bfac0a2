"""What befalls hosts while a run goes on: the launch brings it to its end, with the losses of a run that nothing befell."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import train
from tests.faults.runs import lines
from tests.multinode.hosts import Hosts, hosts_of
from tests.multinode.struck import ENDING, SURVIVED, Struck, strike, table

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.usefixtures("in_repository")]
GAP = 12  # steps between two faults
STEPS = GAP * (len(ENDING) + len(SURVIVED) + 1)
OPTIONS = ["--checkpoint.every=10", "--deepspeed=ds_configs/zero1.json", "--schedule.kind=constant", f"--training.steps={STEPS}"]


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
