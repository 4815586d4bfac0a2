"""One model from a run directory, a checkpoint or an exported directory."""

import json
import shutil

import pytest
import torch

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.load import load_model
from tests.checkpoint.trained import make_model, save_run

TOKENS = torch.arange(48).view(3, 16) % 33


@pytest.mark.parametrize("form", ["run", "checkpoint", "exported"])
def test_every_form_is_the_model(world, form):
    loaded = load_model(getattr(world, form))
    with torch.no_grad():
        logits, wanted = loaded.module(TOKENS.to(loaded.device)).cpu(), world.module(TOKENS)
    if form == "exported":
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
    elif loaded.device.type == "cpu":
        assert logits.equal(wanted)
    assert loaded.vocabulary == world.tokenizer.size
    assert loaded.tokenizer().sha256 == world.tokenizer.sha256
    assert (loaded.model.context, loaded.model.groups, loaded.boundaries) == (16, 2, "ignore")


def test_exported_directory_needs_nothing_else(world, tmp_path):
    """A model with other starting scales than the defaults keeps its function, wherever the directory goes."""
    module = make_model(scales={"alpha": {"init": 0.2, "scale": 0.5}, "gate": {"init": 2.0}}, vocabulary=33)
    save_run(tmp_path / "run", module)
    from megatron_ngpt.checkpoint.export import export

    export(tmp_path / "run", tmp_path / "out")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "out").rename(tmp_path / "moved")
    loaded = load_model(tmp_path / "moved")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(TOKENS.to(loaded.device)).cpu(), module(TOKENS), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"no tokenizer\.model"):
        loaded.tokenizer()


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"model_type": "bert"}', '{"model_type": "ngpt"}'])
def test_what_is_no_model_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^MODEL: "):
        load_model(tmp_path)


def test_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="has saved no checkpoint yet"):
        load_model(tmp_path)


def test_config_that_does_not_fit_the_tensors_is_refused(world, tmp_path):
    shutil.copytree(world.exported, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "intermediate_size": 44}))
    with pytest.raises(ConfigError, match=r"mlp\.up_proj\.weight shape \[40, 24\], the model has shape \[44, 24\]"):
        load_model(tmp_path / "copy")
