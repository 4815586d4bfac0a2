"""Checks beyond the recipe's own keys: the model to start from, the run directory, defaults that stand in for wrong keys."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.ownership import claim
from megatron_ngpt.config.costs.work import checkpoint_bytes
from megatron_ngpt.data.batches import validation_batches
from megatron_ngpt.errors import CheckpointError, ConfigError
from megatron_ngpt.training.preflight import in_use, preflight, space_warnings, summary
from megatron_ngpt.training.record import continued

SHAPE = {"model_type": "ngpt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
         "intermediate_size": 128, "vocab_size": 200, "rope_theta": 10000.0, "update": "lerp"}


@pytest.fixture
def exported(tmp_path):
    """Writes what stands for an exported model and returns its path."""

    def write(weights: bool = True, **changes) -> str:
        (tmp_path / "config.json").write_text(json.dumps(SHAPE | changes))
        if weights:
            (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    return write


def problems(*arguments) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        preflight(*arguments)
    return caught.value.problems


def test_a_model_to_start_from_must_have_the_recipes_shape(good_recipe, exported):
    assert preflight(str(good_recipe), [f"--checkpoint.initial={exported()}"], 2).grid.size("readers") == 2
    found = problems(str(good_recipe), [f"--checkpoint.initial={exported(hidden_size=64, update='slerp', vocab_size=199)}"], 1)
    assert len(found) == 3
    assert "has hidden_size 64, the recipe 32; set model.hidden to match" in found[0]
    assert "has vocab_size 199, the recipe 200; set model.vocab to match" in found[1]
    assert 'has update "slerp", the recipe "lerp"; set model.update to match' in found[2]


def test_a_llama_to_start_from_must_be_one_that_the_baseline_can_be(good_recipe, exported):
    llama = {"model_type": "llama", "rope_theta": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    baseline = [str(good_recipe), ["--model.arch=gpt", f"--checkpoint.initial={exported(**llama)}"], 1]
    assert preflight(*baseline).vocabulary == 200
    exported(**llama, rms_norm_eps=1e-5, tie_word_embeddings=True)
    found = problems(*baseline)
    assert len(found) == 2
    assert "has rms_norm_eps 1e-05, the recipe 1e-06; set model.norm_eps to match" in found[0]
    assert "has tie_word_embeddings true, and model.arch: gpt always false" in found[1]
    found = problems(str(good_recipe), baseline[1][1:], 1)
    assert 'has model_type "llama", the recipe "ngpt"; set model.arch to match' in found[0]


def test_a_model_without_weights_is_refused(good_recipe, exported):
    assert "safetensors" in problems(str(good_recipe), [f"--checkpoint.initial={exported(weights=False)}"], 1)[0]


def test_a_run_directory_is_not_made_by_checking(good_recipe, tmp_path):
    output = tmp_path / "deep" / "run"
    assert preflight(str(good_recipe), [f"--training.output={output}"], 1).recipe.training.output == str(output)
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_run_may_say_never(good_recipe, tmp_path):
    preflight(str(good_recipe), [f"--training.output={tmp_path}", "--checkpoint.resume=never"], 1)
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    found = problems(str(good_recipe), [f"--training.output={tmp_path}", "--checkpoint.resume=never"], 1)
    assert len(found) == 1 and "step-00000012" in found[0]


def test_no_problem_is_invented_from_the_default_of_a_wrong_key(good_recipe):
    found = problems(str(good_recipe), ["--model.hidden=wide", "--model.heads=3", "--parallel.pipeline=5"], 5)
    assert [line.split(" = ")[0] for line in found] == ["model.hidden", "parallel.pipeline"]


def test_a_disk_without_room_for_a_checkpoint_is_told(good_recipe, monkeypatch):
    ready = preflight(str(good_recipe), [], 1)
    needed = (ready.recipe.checkpoint.keep + 1) * checkpoint_bytes(ready.recipe.model, ready.vocabulary)
    for free, lines in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert len(space_warnings(ready)) == lines
    assert "a checkpoint takes" in summary(ready)


def make(path, kind):
    """Something that no run can write, whoever it runs as."""
    path.parent.mkdir(parents=True, exist_ok=True)
    {"file": path.touch, "directory": path.mkdir, "dangling link": lambda: path.symlink_to(path.parent / "gone" / "far"),
     "read-only": lambda: path.symlink_to("/proc/sys/kernel")}[kind]()


@pytest.mark.parametrize(("name", "kind"), [
    *((name, kind) for name in ("checkpoints", "logs", "training") for kind in ("file", "dangling link", "read-only")),
    *((name, kind) for name in ("metrics.jsonl", "recipe.yaml", "logs/rank-00000.log") for kind in ("directory", "dangling link")),
])
def test_writability_is_tried_where_things_are_written(good_recipe, tmp_path, name, kind):
    make(tmp_path / "run" / name, kind)
    before = sorted(tmp_path.rglob("*"))
    found = problems(str(good_recipe), [f"--training.output={tmp_path}/run"], 1)
    assert len(found) == 1 and found[0].startswith(f"training.output = {tmp_path}/run: ") and str(tmp_path / "run" / name) in found[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_room_is_looked_for_where_checkpoints_lie(good_recipe, tmp_path, monkeypatch):
    other, options = tmp_path / "large", [f"--training.output={tmp_path}/run", "--checkpoint.keep=3"]
    (tmp_path / "run").mkdir()
    other.mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(other)
    ready = preflight(str(good_recipe), options, 1)
    one, asked = checkpoint_bytes(ready.recipe.model, ready.vocabulary), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=4 * one - 1))
    assert "checkpoint.keep = 3 and one that is being written take" in space_warnings(ready)[0]
    assert asked[0].resolve() == other
    (other / "step-00000001").mkdir()
    assert space_warnings(ready) == []


def test_a_run_directory_in_use_is_told_by_checking(good_recipe, tmp_path):
    ready = preflight(str(good_recipe), [f"--training.output={tmp_path}"], 1)
    owner = claim(tmp_path, "a")
    assert "is in use by process" in in_use(ready)[0]
    owner.release()
    assert in_use(ready) == []


def test_what_a_run_began_with_may_be_gone_once_it_has_checkpoints_of_its_own(good_recipe, run):
    for gone in ("--checkpoint.resume=/gone", "--checkpoint.initial=/gone"):
        assert preflight(str(good_recipe), [*run, gone], 1).recipe.checkpoint.keep
        assert "/gone" in problems(str(good_recipe), [gone], 1)[0]


@pytest.mark.parametrize(("changed", "said"), [
    (["--training.global_batch=16"], ["training.global_batch = 16: the checkpoint was trained with 8"]),
    (["--model.context=8", "--training.seed=1"], ["training.seed = 1: the checkpoint was trained with 0"]),
    (["--model.context=8", "--model.layers=3"], ["model.layers = 3: the checkpoint was trained with 2"]),
    (["--model.layers=3", "--training.seed=1"], ["model.layers = 3: the checkpoint was trained with 2", "training.seed = 1: the"]),
    (["--data.tokenizer={corpus}/other.model", "--data.valid=[]"], ["data.tokenizer: "]),
])
def test_what_an_existing_run_refuses_is_refused_by_checking(good_recipe, corpus, run, changed, said):
    assert preflight(str(good_recipe), [*run, "--training.steps=9", "--optimizer.lr=1e-3"], 2).ranks == 2
    found = problems(str(good_recipe), [*run, *(word.format(corpus=corpus) for word in changed)], 1)
    assert len(found) == len(said) and all(line.startswith(words) for line, words in zip(found, said, strict=True)), found


def test_a_start_opens_the_json_the_tokenizer_and_each_entrys_dataset_once(good_recipe, run, monkeypatch):
    opened, plain = [], io.open

    def noting(file, *rest, **keys):
        opened.append(Path(file).name if isinstance(file, (str, Path)) else None)
        return plain(file, *rest, **keys)

    monkeypatch.setattr(io, "open", noting)
    monkeypatch.setattr("builtins.open", noting)
    ready = preflight(str(good_recipe), [*run, "--training.steps=9"], 2)
    assert validation_batches(ready.recipe, ready.data)  # what the run asks for beside what is ready
    assert opened.count("state.json") and opened.count("zero1.json") == opened.count("tok.model") == 1
    assert opened.count("text.bin") == 2  # for train and for valid


@pytest.mark.parametrize("resume", ["auto", "{output}", "{output}/checkpoints/step-00000005"])
def test_so_is_a_run_without_a_good_checkpoint(good_recipe, run, resume):
    output = Path(run[0].partition("=")[2])
    (output / "checkpoints" / "step-00000005" / "state.json").write_text("{}")
    with pytest.raises((CheckpointError, ConfigError)):
        preflight(str(good_recipe), [*run, f"--checkpoint.resume={resume.format(output=output)}"], 1)


@pytest.mark.parametrize(("changed", "said"), [
    (["--training.steps=10"], "learning rate: 0 at step 5, 0.0005182 at step 6"),
    (["--training.steps=10", "--schedule.kind=constant"], "learning rate: 0 at step 5, 0.0015 at step 6"),
    (["--training.steps=4"], None), ([], None),
])
def test_the_rate_before_and_after_is_told_where_it_jumps(good_recipe, run, changed, said):
    ready = preflight(str(good_recipe), [*run, *changed], 1)
    _, notes, _ = continued(Catalogue(Path(ready.recipe.training.output)), ready.recipe, ready.data, ready.batches.fingerprint)
    assert [line for line in notes if line.startswith("learning rate")] == ([said] if said else [])


def test_the_rate_at_the_end_of_a_part_of_a_schedule_is_told(good_recipe):
    ready = preflight(str(good_recipe), ["--schedule.decay_steps=10"], 1)
    assert summary(ready).endswith("; the learning rate at the last step, 5 of a schedule of 10, will be 0.00075")
    preflight(str(good_recipe), ["--schedule.decay_steps=10", "--schedule.kind=constant"], 1)
