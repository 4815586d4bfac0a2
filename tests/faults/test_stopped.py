"""A stop is taken however it was sent, and a run directory belongs to one run: nothing that was trained is lost."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.layouts import zero
from tests.distributed.ranks import Run, train
from tests.faults.runs import checkpoints, lines, options, wait_for_step

pytestmark = pytest.mark.usefixtures("in_repository")
ENDLESS = {"checkpoint.every": 0, "training.steps": 100_000, "schedule.kind": "constant"}


def waits_in_step_2(output: Path) -> None:
    """On a rank: the second of the six micro-batches of step 2 begins, tells so, and waits until it may go on; ranks ask after each."""
    from megatron_ngpt.training import stop
    from megatron_ngpt.training.engine import Engine

    stop.WITHIN, original, begun = 0.0, Engine._micro_batches, []

    def micro_batches(self, rows):
        for batch in original(self, rows):
            begun.append(True)
            (output.parent / f"{output.name}.begun").write_text(str(len(begun)))
            while len(begun) == 8 and not (output.parent / f"{output.name}.go").exists():
                time.sleep(0.01)
            yield batch

    Engine._micro_batches = micro_batches


def micro_batches(run: Run) -> int:
    """How many have begun."""
    path = Path(f"{run.output}.begun")
    return int(path.read_text() or 0) if path.exists() else 0


def until(condition: Callable[[], bool], run: Run, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and any(p.is_alive() for p in run.processes), run.story()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_within_a_long_step_keeps_the_steps_before_it(corpus, tmp_path, number):
    arguments = [str(corpus / "recipe.yaml"), *options(ENDLESS)]
    run = Run(1, arguments, tmp_path / "run", before=waits_in_step_2)
    until(lambda: micro_batches(run) == 8, run)
    os.kill(run.processes[0].pid, number)
    until(lambda: "finishing step 2" in run.console(), run)
    (tmp_path / "run.go").touch()
    assert run.wait() == [75 if number == signal.SIGUSR1 else 0], run.story()
    why, again = ("Ctrl-C", "; again to stop now") if number == signal.SIGINT else (number.name, "")
    assert f"{why}: finishing step 2, then a checkpoint{again}\n" in run.console()
    assert "asked to stop: step 2 was cut short, checkpoint of step 1 written; the same command continues from it\n" in run.console()
    assert micro_batches(run) == 8
    assert checkpoints(run.output) == ["latest", "step-00000001"]
    assert list(run.output.glob("owner*")) == []
    if number == signal.SIGHUP:
        more = [*arguments, "--training.steps=3"]
        train(1, more, run.output, others=[(more, tmp_path / "undisturbed")])
        assert lines(run.output) == lines(tmp_path / "undisturbed")


def test_ctrl_c_twice_leaves_one_line(corpus, tmp_path):
    run = Run(1, [str(corpus / "recipe.yaml"), *options(ENDLESS)], tmp_path / "run", before=waits_in_step_2)
    until(lambda: micro_batches(run) == 8, run)
    os.kill(run.processes[0].pid, signal.SIGINT)
    until(lambda: "again to stop now" in run.console(), run)
    os.kill(run.processes[0].pid, signal.SIGINT)
    assert run.wait() == [130], run.story()
    assert run.console().splitlines()[-1] == "stopped at once: what was trained since the last checkpoint is lost"
    assert "Traceback" not in run.story()
    assert list(run.output.glob("owner*")) == []


def files(output: Path) -> list[str]:
    return sorted(str(path.relative_to(output)) for path in output.rglob("*"))


def test_a_second_start_is_refused_and_the_first_goes_on(corpus, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), *options(zero(2) | ENDLESS)]
    first = Run(2, arguments, tmp_path / "run")
    wait_for_step(first, 2)
    recipe = first.output / "recipe.yaml"
    there, written = files(first.output), recipe.stat().st_mtime_ns
    second = Run(2, arguments, tmp_path / "run")
    assert second.wait() == [2, 2], second.story()
    told = [line for line in second.console().splitlines() if "in use by" in line]
    assert len(told) == 1 and f"in use by process {first.processes[0].pid} on " in told[0] and ", started 20" in told[0]
    assert files(first.output) == there and recipe.stat().st_mtime_ns == written
    first.kill()
    (first.output / "metrics.jsonl").unlink()
    third = Run(2, arguments, tmp_path / "run")
    wait_for_step(third, 3)
    os.kill(third.processes[0].pid, signal.SIGTERM)
    assert third.wait() == [75, 75], third.story()


def taken_over(output: Path) -> None:
    """On a rank: after step 2 another run has the directory."""
    import megatron_ngpt.training.loop as loop
    from megatron_ngpt.checkpoint import ownership
    from megatron_ngpt.training.schedule import learning_rate

    ownership.BEAT = 0

    def rate(*arguments):
        if arguments[-1] == 3 and os.environ["RANK"] == "0":
            (output / "owner-00000009.json").write_text(json.dumps({"host": "other", "process": 7, "started": "now", "token": "x"}))
        return learning_rate(*arguments)

    loop.learning_rate = rate


def test_who_lost_the_directory_stops_before_it_writes(corpus, tmp_path):
    run = Run(2, [str(corpus / "recipe.yaml"), *options(zero(2) | {"checkpoint.every": 3})], tmp_path / "run", before=taken_over)
    assert run.wait() == [1, 1], run.story()
    assert run.console().splitlines()[-1] == (
        f"{run.output} is used by process 7 on other, started now now: this run was taken for dead, and stops without writing there"
    )
    assert [line["step"] for line in lines(run.output)] == [1, 2]
    assert not (run.output / "checkpoints").exists() and (run.output / "owner-00000009.json").exists()
    assert "Traceback" not in run.console() + run.console(1)


def test_a_run_that_began_elsewhere_goes_on_from_its_own(corpus, tmp_path):
    recipe = [str(corpus / "recipe.yaml"), "--schedule.kind=constant", "--checkpoint.every=1"]
    train(1, [*recipe, "--training.steps=2"], tmp_path / "first")
    path = tmp_path / "first" / "checkpoints" / "step-00000001"
    arguments = [*recipe, f"--checkpoint.resume={path}"]
    run = train(1, [*arguments, "--training.steps=3"], tmp_path / "second")
    assert f"continues from {path}" in run.console() and "says how" not in run.console()
    path.rename(tmp_path / "gone")
    run = train(1, [*arguments, "--training.steps=4"], tmp_path / "second")
    own = tmp_path / "second" / "checkpoints" / "step-00000003"
    assert f"checkpoint.resume = {path} says how {tmp_path}/second begins" in run.console() and f"continues from {own}" in run.console()
    assert [line["step"] for line in lines(run.output)] == [2, 3, 4]


def spoils_the_last_update(output: Path) -> None:
    import megatron_ngpt.training.loop as loop

    original = loop.Trainer._save

    def save(self, final):
        if self.step == 3:
            next(iter(self.engine.shards.values())).master.view(-1)[0] = float("nan")
        original(self, final)

    loop.Trainer._save = save


def spoils_the_evaluation(output: Path) -> None:
    from megatron_ngpt.training.engine import Engine

    Engine.evaluate = lambda *_: float("nan")


def test_a_last_update_that_is_not_finite_is_no_success(corpus, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), "--training.steps=3", "--checkpoint.every=1"]
    run = Run(1, arguments, tmp_path / "run", before=spoils_the_last_update)
    assert run.wait() == [1], run.story()
    assert "step-00000003 was not written: weights/" in run.console().splitlines()[-1]
    assert checkpoints(run.output) == ["latest", "step-00000001", "step-00000002", "step-00000003.notfinite"]
    train(1, arguments, tmp_path / "run")


def test_a_last_evaluation_that_is_not_finite_is_no_success(corpus, tmp_path):
    keys = ["--training.steps=2", "--training.eval_every=2", f"--data.valid=[{{prefix: {corpus}/b}}]"]
    run = Run(1, [str(corpus / "recipe.yaml"), *keys], tmp_path / "run", before=spoils_the_evaluation)
    assert run.wait() == [1], run.story()
    assert run.console().splitlines()[-1].startswith("step 2: the validation loss is nan; the checkpoint of this step is written")
    assert lines(run.output)[-1]["valid_loss"] is None
