"""A Llama that `transformers` wrote, as the start of the baseline: the same function in every layout, or a refusal."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.monitor.metrics import read_metrics
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.trained import SHAPE
from tests.distributed.corpus import REPOSITORY
from tests.distributed.ranks import train

V = 33
TOKENS = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(0))


def make_llama(directory, dtype=torch.float32, max_shard_size="5GB", **changes) -> LlamaForCausalLM:
    """A Llama of the tests' shape whose every weight is random, saved in `directory`."""
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40}
    shape |= {"vocab_size": V, "max_position_embeddings": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).to(dtype)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    llama.save_pretrained(directory, max_shard_size=max_shard_size)
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def baseline(**changes) -> Decoder:
    return Decoder(Blueprint(Model(**{**SHAPE, "arch": "gpt", **changes}), V))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_shard_size", ["5GB", "10KB"])
@torch.no_grad()
def test_logits_are_theirs(tmp_path, dtype, max_shard_size):
    llama = make_llama(tmp_path, dtype, max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (max_shard_size == "10KB")
    module = baseline()
    load_initial(tmp_path, shards_of(module), module.blueprint)
    wanted = llama(TOKENS).logits
    assert wanted.std() > 0.5
    torch.testing.assert_close(module(TOKENS), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(load_model(tmp_path).module(TOKENS), wanted, atol=1e-4, rtol=0)


def change_config(directory, **changes) -> None:
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


@torch.no_grad()
def test_configs_and_tensors_of_older_versions(tmp_path):
    """`rope_theta` by itself, heads that follow from others left out, frequencies among the tensors."""
    llama = make_llama(tmp_path, num_key_value_heads=4)
    change_config(tmp_path, rope_parameters="absent", rope_theta=500.0, rope_scaling=None, num_key_value_heads="absent", head_dim="absent")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, tmp_path / "model.safetensors")
    module = baseline(kv_heads=4)
    load_initial(tmp_path, shards_of(module), module.blueprint)
    torch.testing.assert_close(module(TOKENS), llama(TOKENS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tie_word_embeddings": True}, "has tie_word_embeddings true, and model.arch: gpt always false"),
        ({"attention_bias": True}, "has attention_bias true, and model.arch: gpt always false"),
        ({"mlp_bias": True}, "has mlp_bias true, and model.arch: gpt always false"),
        ({"rms_norm_eps": 1e-5}, "has rms_norm_eps 1e-05, the recipe 1e-06; set model.norm_eps to match"),
        ({"hidden_act": "gelu"}, 'has hidden_act "gelu", and model.arch: gpt always "silu"'),
        ({"head_dim": 8}, "has head_dim 8, and model.arch: gpt always 6"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
            'has rope_type "linear", the recipe "default"; set model.rope_scaling.kind to match',
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "has rope_theta 1000000.0, the recipe 500.0; set model.rope_b"),
        ({"vocab_size": 40}, "has vocab_size 40, the recipe 33; set model.vocab"),
    ],
)
def test_what_the_baseline_cannot_be_is_refused(tmp_path, changes, message):
    make_llama(tmp_path, **changes)
    module = baseline()
    with pytest.raises(ConfigError) as error:
        load_initial(tmp_path, shards_of(module), module.blueprint)
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(f"checkpoint.initial = {tmp_path}: {message}")


@pytest.mark.parametrize("damage", ["no shard", "half a shard", "no json", "other json"])
def test_what_cannot_be_read_is_refused(tmp_path, damage):
    make_llama(tmp_path, max_shard_size="10KB")
    shard, index = sorted(tmp_path.glob("*.safetensors"))[0], tmp_path / "model.safetensors.index.json"
    if damage == "no shard":
        shard.unlink()
    elif damage == "half a shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        index.write_text("{" if damage == "no json" else "[1]")
    module = baseline()
    with pytest.raises(ConfigError) as error:
        load_initial(tmp_path, shards_of(module), module.blueprint)
    assert (shard if "shard" in damage else index).name in str(error.value) and len(error.value.problems) == 1


@pytest.mark.parametrize("layout", [["--parallel.tensor=2"], ["--deepspeed=ds_configs/zero3.json"]])
def test_training_starts_from_it(corpus, in_repository, tmp_path, layout):
    """The first loss is the Llama's on the same batch, through the door that users take."""
    llama = make_llama(
        tmp_path / "llama", hidden_size=80, num_hidden_layers=4, num_key_value_heads=4, intermediate_size=320, vocab_size=332,
        rms_norm_eps=0.01,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, max_shard_size="200KB",
    )  # fmt: skip
    arguments = [str(corpus / "recipe.yaml"), "--model.arch=gpt", "--model.norm_eps=0.01", f"--checkpoint.initial={tmp_path / 'llama'}"]
    show = ["show-batch", str(corpus / "recipe.yaml"), "--step", "1", "--output", str(tmp_path / "batch.npy")]
    subprocess.run([sys.executable, "-m", "data_tools", *show], check=True, cwd=REPOSITORY, capture_output=True)
    tokens = torch.from_numpy(np.load(tmp_path / "batch.npy").astype(np.int64))
    with torch.no_grad():
        wanted = llama(tokens, labels=tokens).loss.item()
    run = train(2, [*arguments, *layout, "--training.steps=2"], tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(run.output)]
    assert losses[0] == pytest.approx(wanted, rel=1e-5) and losses[1] != losses[0]
