"""Runs that are killed, stopped or fail go on as if nothing had happened, or stop with one clear line."""

import hashlib
import os
import signal

import pytest
from sentencepiece import sentencepiece_model_pb2

from megatron_ngpt.inference.load import load_model
from tests.distributed.layouts import cut, zero
from tests.distributed.ranks import Run, train
from tests.faults.runs import lines, options, wait_for_step

pytestmark = pytest.mark.usefixtures("in_repository")


def test_killed_run_resumes_bit_for_bit_and_in_another_layout(corpus, tmp_path):
    recipe, layout = str(corpus / "recipe.yaml"), options(cut(2) | zero(1))
    train(2, [recipe, *layout], tmp_path / "undisturbed")

    killed = Run(2, [recipe, *layout], tmp_path / "killed")
    wait_for_step(killed, 12)
    killed.kill()
    train(2, [recipe, *layout], tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed")
    assert len(lines(tmp_path / "killed")) == 20

    moved = Run(2, [recipe, *layout], tmp_path / "moved")
    wait_for_step(moved, 12)
    moved.kill()
    train(3, [recipe, *options(zero(3))], tmp_path / "moved")
    for ours, theirs in zip(lines(tmp_path / "moved"), lines(tmp_path / "undisturbed"), strict=True):
        assert ours["step"] == theirs["step"]
        assert abs(ours["loss"] - theirs["loss"]) <= 1e-5 * theirs["loss"]


def test_sigterm_to_one_rank_stops_all_at_one_step_with_a_checkpoint(corpus, tmp_path):
    arguments = [str(corpus / "recipe.yaml"), *options(zero(2) | {"checkpoint.every": 0, "training.steps": 400})]
    run = Run(2, arguments, tmp_path / "run")
    wait_for_step(run, 3)
    os.kill(run.processes[1].pid, signal.SIGTERM)
    assert run.wait() == [75, 75], run.story()
    assert "asked to stop" in run.console()
    stopped = lines(run.output)[-1]["step"]
    assert stopped < 400
    assert (run.output / "checkpoints" / f"step-{stopped:08d}").is_dir()
    again = train(2, [*arguments, f"--training.steps={stopped + 2}"], run.output)
    assert "continues from" in again.console()
    assert [line["step"] for line in lines(run.output)] == list(range(1, stopped + 3))


def test_loss_that_is_not_finite_stops_with_one_line(corpus, tmp_path):
    keys = {"model.arch": "gpt", "optimizer.lr": 1e30, "optimizer.clip": 0, "training.steps": 30, "checkpoint.every": 1}
    run = Run(2, [str(corpus / "recipe.yaml"), *options(zero(0) | keys)], tmp_path / "run")
    assert run.wait() == [1, 1], run.story()
    told = [line for line in run.console().splitlines() if "did not help" in line]
    assert len(told) == 1 and "3 rollbacks to" in told[0] and told[0] == run.console().splitlines()[-1]
    assert "Traceback" not in run.console() + run.console(1)
    assert "did not help" not in run.console(1)


def test_recipe_that_contradicts_the_checkpoint_is_refused_with_both_values(corpus, tmp_path):
    recipe = str(corpus / "recipe.yaml")
    train(1, [recipe, "--training.steps=1", "--schedule.kind=constant"], tmp_path / "run")
    for key, value, before in (("model.hidden", 40, 80), ("training.seed", 7, 0),
                               ("model.update", "slerp", "lerp"), ("training.global_batch", 24, 12)):
        run = Run(2, [recipe, f"--{key}={value}"], tmp_path / "run")
        assert run.wait() == [2, 2], run.story()
        told = run.console().splitlines()[-1]
        assert f"{key} = {value}" in told and str(before) in told
    (tmp_path / "run.rank0").unlink()
    run = train(1, [recipe, "--training.steps=2", "--optimizer.lr=0.001"], tmp_path / "run")
    assert "optimizer.lr: 0.003 → 0.001" in run.console()


def test_the_tokenizer_is_told_by_its_content_and_travels_with_the_checkpoint(corpus, tmp_path):
    for ending in ("bin", "idx"):
        (tmp_path / f"a.{ending}").symlink_to(corpus / f"a.{ending}")
    content = (corpus / "tokenizer.model").read_bytes()
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    proto.pieces[-1].score -= 1
    for name, model in (("first", content), ("moved", content), ("other", proto.SerializeToString())):
        (tmp_path / f"{name}.model").write_bytes(model)
    data = [str(corpus / "recipe.yaml"), f"--data.train=[{{prefix: {tmp_path}/a}}]"]
    train(1, [*data, f"--data.tokenizer={tmp_path}/first.model", "--training.steps=1"], tmp_path / "run")
    (tmp_path / "first.model").unlink()
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "tokenizer.model").read_bytes() == content
    run = Run(1, [*data, f"--data.tokenizer={tmp_path}/other.model", "--training.steps=2"], tmp_path / "run")
    assert run.wait() == [2], run.story()
    told = run.console().splitlines()[-1]
    assert f"data.tokenizer = {tmp_path}/other.model (SHA-256 " in told and f"trained with {tmp_path}/first.model (SHA-256 " in told
    train(1, [*data, f"--data.tokenizer={tmp_path}/moved.model", "--training.steps=2"], tmp_path / "run")
    assert load_model(tmp_path / "run").tokenizer().sha256 == hashlib.sha256(content).hexdigest()


def test_a_start_finds_what_a_kill_left_without_its_name(corpus, tmp_path):
    """Between the two moves with which a checkpoint replaces another of the same step."""
    recipe = str(corpus / "recipe.yaml")
    train(1, [recipe, "--training.steps=1", "--schedule.kind=constant"], tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.rename(checkpoint.with_name("step-00000001.obsolete"))
    run = train(1, [recipe, "--training.steps=2", "--schedule.kind=constant"], tmp_path / "run")
    assert f"continues from {checkpoint}" in run.console()
    assert [line["step"] for line in lines(run.output)] == [1, 2]


def test_a_finished_run_asked_for_fewer_steps_has_nothing_to_do_and_for_more_tells_its_rates(corpus, tmp_path):
    recipe = str(corpus / "recipe.yaml")
    train(1, [recipe, "--training.steps=2"], tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_bytes(), lines(tmp_path / "run")
    (tmp_path / "run.rank0").unlink()
    run = train(1, [recipe, "--training.steps=1"], tmp_path / "run")
    assert "nothing to do: trained to step 2 already (training.steps = 1)" in run.console()
    assert ((tmp_path / "run" / "recipe.yaml").read_bytes(), lines(tmp_path / "run")) == before
    (tmp_path / "run.rank0").unlink()
    run = train(1, [recipe, "--training.steps=4"], tmp_path / "run")
    assert "learning rate: 0 at step 2, 0.0004393 at step 3" in run.console()
    assert lines(run.output)[2]["lr"] == pytest.approx(0.0004393, rel=1e-3)
