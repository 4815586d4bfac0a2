"""What befalls hosts while a run goes on: the launch brings it to its end, with the losses of a run that nothing befell."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.distributed.ranks import train
from tests.faults.runs import lines
from tests.multinode.hosts import Hosts, hosts_of
from tests.multinode.strikes import (
    all_asked_to_stop,
    cable_cut,
    cable_cut_and_survived,
    cable_cut_as_long_as_the_limit,
    cable_cut_briefly,
    cable_slow,
    deepspeed_killed,
    disk_full,
    first_host_killed,
    host_killed,
    launcher_killed,
    strike,
    table,
    worker_killed,
    worker_stopped,
)
from tests.multinode.struck import Struck

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.usefixtures("in_repository")]
STEPS = 160
OPTIONS = ["--checkpoint.every=10", "--deepspeed=ds_configs/zero1.json", "--schedule.kind=constant", f"--training.steps={STEPS}"]
RUNS = {
    "ranks": (worker_killed, worker_stopped, launcher_killed, deepspeed_killed, all_asked_to_stop),
    "cables": (cable_cut_briefly, cable_slow, cable_cut_as_long_as_the_limit, cable_cut),
    "hosts": (disk_full, host_killed, first_host_killed),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts of one slot each."""
    with hosts_of(1, 1) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> list[dict]:
    """The lines of the same two ranks on one host."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(2, [str(corpus / "recipe.yaml"), *OPTIONS], output, seconds=400)
    return lines(output)


def assert_survives(run: Struck, faults: Iterable[Callable], undisturbed: list[dict]) -> None:
    """The run meets them one after another."""
    outcomes = []
    try:
        for fault in faults:
            run.until(run.step() + 4)
            outcomes.append(strike(run, fault))
            print(outcomes[-1].row(), flush=True)
        run.finish(undisturbed)
    finally:
        run.clear()
        print(table(outcomes))


@pytest.mark.parametrize("kind", RUNS)
def test_one_run_survives_them_all(hosts, corpus, undisturbed, tmp_path: Path, kind):
    assert_survives(Struck(hosts, corpus / "recipe.yaml", tmp_path / "run", OPTIONS), RUNS[kind], undisturbed)


def test_a_cut_shorter_than_the_limit_is_survived(hosts, corpus, undisturbed, tmp_path: Path):
    run = Struck(hosts, corpus / "recipe.yaml", tmp_path / "run", OPTIONS, limit=60)
    assert_survives(run, [cable_cut_and_survived], undisturbed)
