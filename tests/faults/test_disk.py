"""A disk that is full, slow, or gives back other bytes than it was given: the run lives, or stops with one clear line."""

import resource
import time
from pathlib import Path

import pytest

from tests.checkpoint.damage import flip
from tests.distributed.layouts import cut, zero
from tests.distributed.ranks import Run, train
from tests.faults.runs import checkpoints, lines, options

pytestmark = pytest.mark.usefixtures("in_repository")
KEYS = {"training.steps": 20}
SMALL = 100_000  # bytes; a rank's part of a checkpoint is longer, everything else it writes is not


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory, monkeypatch_module) -> Path:
    """The run without any fault."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train(2, [str(corpus / "recipe.yaml"), *options(zero(2) | KEYS)], output)
    return output


@pytest.fixture(scope="module")
def monkeypatch_module():
    from tests.distributed.corpus import REPOSITORY

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        yield patch


def full_at_step_10(output: Path) -> None:
    """On a rank: while the checkpoint of step 10 is written no file may be long, as on a full disk."""
    from megatron_ngpt.checkpoint.store import CheckpointStore

    original, unlimited = CheckpointStore.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(self, step, *arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, unlimited[1]) if step == 10 else unlimited)
        original(self, step, *arguments)

    CheckpointStore.save = save


def slow(output: Path) -> None:
    """On a rank: every write of a checkpoint takes longer than the steps between two of them."""
    from megatron_ngpt.checkpoint.storage import Writer

    original = Writer.write_data

    def write_data(self, plan, planner):
        time.sleep(1)
        return original(self, plan, planner)

    Writer.write_data = write_data


def test_full_disk_leaves_the_run_alive_with_a_warning(corpus, undisturbed, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), *options(zero(2) | KEYS)]
    run = train(2, arguments, tmp_path / "run", before=full_at_step_10)
    told = [line for line in run.console().splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "step-00000010 could not be written: File too large" in told[0]
    assert told[0].endswith(f"training goes on, the last good checkpoint is {run.output}/checkpoints/step-00000005")
    assert "warning" not in run.console(1)
    assert lines(run.output) == lines(undisturbed)
    assert checkpoints(run.output) == ["latest", "step-00000015", "step-00000020"]


def test_full_disk_at_the_end_is_a_failure_told_in_one_line(corpus, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), *options(zero(2) | KEYS | {"training.steps": 10})]
    run = Run(2, arguments, tmp_path / "run", before=full_at_step_10)
    assert run.wait() == [1, 1], run.story()
    assert "step-00000010 could not be written: File too large" in run.console().splitlines()[-1]
    assert "Traceback" not in run.console() + run.console(1) and run.console(1) == ""
    assert checkpoints(run.output) == ["latest", "step-00000005"]
    run = train(2, arguments, tmp_path / "run")
    assert "continues from" in run.console()
    assert checkpoints(run.output) == ["latest", "step-00000005", "step-00000010"]


def test_a_save_under_way_is_waited_for(corpus, undisturbed, tmp_path):
    keys = KEYS | {"checkpoint.keep": 30}
    run = train(2, [str(corpus / "recipe.yaml"), *options(zero(2) | keys)], tmp_path / "run", before=slow)
    assert checkpoints(run.output) == ["latest", *(f"step-{step:08}" for step in range(5, 21, 5))]
    assert lines(run.output) == lines(undisturbed)
    assert (run.output / "checkpoints" / "latest").read_text() == "step-00000020\n"


def test_a_flipped_bit_in_the_newest_checkpoint(corpus, undisturbed, tmp_path):
    recipe = str(corpus / "recipe.yaml")
    train(2, [recipe, *options(zero(2) | KEYS | {"training.steps": 10, "schedule.kind": "constant"})], tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000010"
    flip(newest / "__1_0.distcp", (newest / "__1_0.distcp").stat().st_size // 3)
    run = train(2, [recipe, *options(cut(2) | KEYS | {"schedule.kind": "constant"})], tmp_path / "run")
    told = [line for line in run.console().splitlines() if "put aside" in line]
    assert len(told) == 1 and "__1_0.distcp has not the checksum" in told[0]
    assert "step-00000005" in next(line for line in run.console().splitlines() if "continues from" in line)
    assert [line["step"] for line in lines(run.output)] == list(range(1, 21))
    assert checkpoints(run.output) == ["latest", "step-00000015", "step-00000020"]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(corpus, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), *options(zero(2) | {"training.steps": 5})]
    train(2, arguments, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "step-00000005" / "__0_0.distcp", -1)
    (tmp_path / "run.rank0").unlink()
    for told in ("no good checkpoint in", "no good checkpoint in"):  # found by the first, remembered by the second
        run = Run(2, [*arguments, "--training.steps=6"], tmp_path / "run")
        assert run.wait() == [1, 1], run.story()
        assert told in run.console().splitlines()[-1]
    assert "Traceback" not in run.console() + run.console(1)
