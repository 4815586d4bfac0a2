"""Checks beyond the recipe's own keys: the model to start from, the run directory, defaults that stand in for wrong keys."""

import json
import shutil
from types import SimpleNamespace

import pytest

from megatron_ngpt.config import size
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.training.preflight import preflight, space_warnings, summary

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
    needed = size.checkpoint(ready.recipe.model, ready.vocabulary)
    for free, lines in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert len(space_warnings(ready)) == lines
    assert "a checkpoint takes" in summary(ready)
