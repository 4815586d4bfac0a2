"""Numerical trouble in whole runs: a bad step costs itself, a row of them a rollback and its samples, and resumed runs agree."""

import socket
import time
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.layouts import cut, zero
from tests.distributed.ranks import Run, train
from tests.faults.poison import ONE, ROW, before
from tests.faults.runs import checkpoints, lines, options

pytestmark = pytest.mark.usefixtures("in_repository")
KEYS = {"schedule.kind": "constant", "training.steps": 18, "training.skip.deviations": 0, "checkpoint.keep": 9}
LAYOUTS = {1: {"one": zero(0)}, 2: {"tensor": cut(2), "zero1": zero(1), "zero3": zero(3), "pipeline": cut(pipeline=2)}}
HEAVY = {name: {"deepspeed": f"ds_configs/{name}.json"} for name in ("bf16-zero1", "bf16-zero3", "zero2-offload")}


def turn(corpus, output: Path, **keys) -> tuple[list[str], Path]:
    return [str(corpus / "recipe.yaml"), *options(KEYS | keys)], output


def trained(output: Path) -> list[dict]:
    """metrics.jsonl but for the count of vetoes, which skipped ones keep from the step on where the run went back to."""
    return [{key: value for key, value in line.items() if key != "vetoed_steps"} for line in lines(output)]


def happened(output: Path, *kinds: str) -> list[dict]:
    return [event for event in read_events(output) if event["event"] in kinds]


@pytest.mark.parametrize(("ranks", "layouts"), [*LAYOUTS.items(), pytest.param(2, HEAVY, marks=pytest.mark.heavy)])
def test_a_row_of_vetoes_rolls_back_to_the_run_that_never_saw_its_samples(corpus, tmp_path, ranks, layouts):
    turns = []
    for name, layout in layouts.items():
        turns += [turn(corpus, tmp_path / f"{kind}-{name}", **layout) for kind in ("row", "without")]
    turns.append(turn(corpus, tmp_path / "rare", **layout, **{"training.log_every": 8}))
    train(ranks, *turns[0], before=before, seconds=280, others=turns[1:])
    for name in layouts:
        assert trained(tmp_path / f"row-{name}") == trained(tmp_path / f"without-{name}"), name
        assert lines(tmp_path / f"row-{name}")[-1]["vetoed_steps"] == 3
        [back] = happened(tmp_path / f"row-{name}", "rollback")
        assert (back["step"], back["vetoed"], back["skipped"]) == (10, [12, 14], list(ROW))
        assert [event["repeated"] for event in happened(tmp_path / f"row-{name}", "veto")] == ["repeats bit for bit"] * 3
    rare = {line["step"]: line["loss"] for line in lines(tmp_path / "rare")}
    assert rare == {line["step"]: line["loss"] for line in trained(tmp_path / f"without-{name}") if line["step"] in rare}
    assert sorted(rare) == [8, 16, 18] and len(happened(tmp_path / "rare", "rollback")) == 1


@pytest.mark.heavy
def test_a_rollback_outlives_a_kill_and_a_change_of_layout(corpus, tmp_path):
    killed, moved, without = tmp_path / "row-killed", tmp_path / "row-moved", tmp_path / "without"
    run, deadline = Run(2, *turn(corpus, killed, **zero(1)), before=before), time.monotonic() + 100
    while not happened(killed, "rollback"):
        assert time.monotonic() < deadline and all(p.is_alive() for p in run.processes), run.story()
        time.sleep(0.005)
    run.kill()
    train(2, *turn(corpus, moved, **cut(2), **{"training.steps": 16}), before=before)
    train(1, *turn(corpus, killed), before=before, others=[turn(corpus, moved), turn(corpus, without)])
    for output in (killed, moved):
        assert [line["step"] for line in lines(output)] == list(range(1, 19))
        assert [line["loss"] for line in lines(output)] == pytest.approx([line["loss"] for line in lines(without)], rel=1e-5)
        assert lines(output)[-1]["vetoed_steps"] == 3
    assert len(happened(moved, "rollback")) == 1


def test_one_bad_step_is_vetoed_and_told_and_resumed_runs_agree(corpus, tmp_path):
    begun, one = tmp_path / "begun", tmp_path / "one"
    turns = [turn(corpus, one), turn(corpus, begun, **{"training.steps": 10}), turn(corpus, begun), turn(corpus, tmp_path / "once")]
    run = train(1, *turns[0], before=before, others=turns[1:])
    assert lines(begun) == lines(one) and [line["step"] for line in lines(one)] == list(range(1, 19))
    assert lines(one)[6]["grad_norm"] is None and [line["vetoed_steps"] for line in lines(one)] == [0] * 6 + [1] * 12
    [veto] = happened(one, "veto")
    assert (veto["step"], veto["batch"], veto["why"], veto["repeated"]) == (7, ONE[0], "gradient norm is nan", "repeats bit for bit")
    assert veto["command"] == f"python -m data_tools show-batch {one}/recipe.yaml --batch 7 --decode" and veto["command"] in run.console()
    [transient] = happened(tmp_path / "once", "veto")
    assert transient["repeated"].startswith("does not repeat (loss ") and transient["repeated"].endswith("a fault of the machine")


def test_a_spike_is_vetoed_by_its_history_and_so_it_is_after_a_resume(corpus, tmp_path):
    spike, begun = tmp_path / "spike", tmp_path / "spike-begun"
    keys = {"training.skip.deviations": 50.0}
    turns = [turn(corpus, spike, **keys), turn(corpus, begun, **keys, **{"training.steps": 8}), turn(corpus, begun, **keys)]
    train(1, *turns[0], before=before, others=turns[1:])
    assert lines(begun) == lines(spike)
    for output in (spike, begun):
        [veto] = happened(output, "veto")
        assert veto["step"] == 9 and ": one is 50 deviations above the last" in veto["why"]


def test_what_rollbacks_do_not_help_ends_with_one_line(corpus, tmp_path):
    run = Run(1, *turn(corpus, tmp_path / "always"), before=before)
    assert run.wait() == [1], run.story()
    told = run.console().splitlines()[-1]
    assert told.startswith("steps 6 to 8 were vetoed: gradient norm is nan; 3 rollbacks to ") and "step-00000005 did not help" in told
    assert checkpoints(run.output) == ["latest", "step-00000005"] and "Traceback" not in run.console()


def test_a_flipped_bit_in_one_ranks_masters_ends_the_run_before_it_is_saved(corpus, tmp_path):
    run = Run(2, *turn(corpus, tmp_path / "flipped", **zero(0)), before=before)
    assert run.wait() == [1, 1], run.story()
    told, host = run.console().splitlines()[-1], socket.gethostname()
    assert told.startswith(f"step 10: rank 0 on {host} and rank 1 on {host} hold copies of model.") and "up_proj.weight that differ" in told
    assert told.endswith("stopped before any of it is saved") and checkpoints(run.output) == ["latest", "step-00000005"]
    assert "Traceback" not in run.console() + run.console(1)


def test_without_a_checkpoint_a_row_of_vetoes_ends_the_run(corpus, tmp_path):
    run = Run(1, *turn(corpus, tmp_path / "start"), before=before)
    assert run.wait() == [1], run.story()
    assert "steps 1 to 3 were vetoed: gradient norm is nan; there is no checkpoint to roll back to" in run.console().splitlines()[-1]
