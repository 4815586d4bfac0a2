"""Numerical trouble, flipped bits and checkpoints that end their readers on two hosts, through launch/multinode.sh: as on one host."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed.layouts import zero
from tests.distributed.ranks import train
from tests.faults.poison import ROW, before
from tests.faults.runs import checkpoints, lines, options
from tests.faults.test_trouble import KEYS, happened, trained
from tests.multinode.befall import UNREADABLE, environment, flipped_once, poisoned, reader_crashes
from tests.multinode.hosts import Hosts, hosts_of
from tests.multinode.struck import Struck

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("in_repository")]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two hosts of one slot each."""
    with hosts_of(1, 1) as hosts:
        yield hosts


def ended(hosts: Hosts, corpus: Path, output: Path, befalls: Callable[[Path], None], keys: dict) -> Struck:
    """A run on both hosts that came to its end."""
    run = Struck(hosts, corpus / "recipe.yaml", output, options(keys), **environment(befalls, output.with_name(f"{output.name}.site")))
    try:
        run.ends()
    finally:
        run.clear()
    return run


def alone(corpus: Path, output: Path, keys: dict, **how) -> list[dict]:
    """The lines of such a run on one host."""
    train(2, [str(corpus / "recipe.yaml"), *options(keys)], output, **how)
    return lines(output)


@pytest.mark.heavy
def test_a_row_of_vetoes_rolls_back_to_the_run_that_never_saw_its_samples(hosts, corpus, tmp_path):
    keys = KEYS | zero(1)
    run = ended(hosts, corpus, tmp_path / "row", poisoned, keys)
    alone(corpus, tmp_path / "without", keys, before=before)
    assert trained(run.output) == trained(tmp_path / "without")
    [back] = happened(run.output, "rollback")
    assert (back["step"], back["vetoed"], back["skipped"]) == (10, [12, 14], list(ROW))
    assert len(run.events("start")) == 1


@pytest.mark.long
@pytest.mark.parametrize(("kind", "step", "why"), [("one", 7, "gradient norm is nan"), ("spike", 9, "one is 50 deviations above")])
def test_one_bad_step_is_vetoed(hosts, corpus, tmp_path, kind, step, why):
    keys = KEYS | zero(1) | {"training.skip.deviations": 50.0}
    run = ended(hosts, corpus, tmp_path / kind, poisoned, keys)
    assert lines(run.output) == alone(corpus, tmp_path / f"{kind}-alone", keys, before=before)
    [veto] = happened(run.output, "veto")
    assert veto["step"] == step and why in veto["why"] and veto["command"] in run.shown.read_text()
    assert len(run.events("start")) == 1


@pytest.mark.long
def test_a_flipped_bit_is_named_by_host_and_costs_the_steps_since_the_last_checkpoint(hosts, corpus, tmp_path):
    keys = KEYS | zero(0)
    run = ended(hosts, corpus, tmp_path / "flipped", flipped_once, keys)
    told = next(event["error"] for event in run.events("end"))
    assert told.startswith("step 10: rank 0 on host1 and rank 1 on host2 hold copies of model.") and told in run.shown.read_text()
    assert [start["step"] for start in run.events("start")] == [0, 5]
    assert lines(run.output) == alone(corpus, tmp_path / "alone", keys)


@pytest.mark.long
def test_a_checkpoint_that_ends_its_readers_is_put_aside(hosts, corpus, tmp_path):
    keys = KEYS | zero(1)
    alone(corpus, tmp_path / "run", keys | {"training.steps": 10})
    run = ended(hosts, corpus, tmp_path / "run", reader_crashes, keys)
    told = run.shown.read_text()
    assert told.count("rank 1 on host2 was ended by SIGSEGV") == 2, told[-5000:]
    assert f"{UNREADABLE}: 2 starts in a row ended while they read it; put aside" in told
    assert run.events("start")[-1]["step"] == 5
    assert lines(run.output) == alone(corpus, tmp_path / "alone", keys)
    assert UNREADABLE in checkpoints(run.output)  # written anew
