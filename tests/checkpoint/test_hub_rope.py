"""A context longer than before, outside: `transformers` computes what we do under every scaling, and what it wrote comes in."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_ngpt.checkpoint.exported import make_config
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.inference.load import load_model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.test_hub_llama import baseline, change_config, make_llama
from tests.checkpoint.trained import exported, make_model
from tests.reference import reference_logits

V, T = 33, 48
SCALINGS = {
    "linear": {"kind": "linear", "factor": 3.0},
    "ntk": {"kind": "ntk", "factor": 3.0},
    "yarn": {"kind": "yarn", "factor": 3.0, "original_context": 16},
}
TOKENS = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """By architecture and kind, our model of that scaling, the directory it was exported to and its config.json; made when asked for."""
    made = {}

    def make(arch, kind):
        if (arch, kind) not in made:
            keys = {"rope_scaling": SCALINGS[kind], "context": T} if kind in SCALINGS else {}
            module = make_model(arch, heads=2, kv_heads=1, rope_base=40.0, **keys)
            if arch == "gpt":  # whose weights of deviation 0.02 leave nothing to attend to
                for parameter in module.parameters():
                    parameter.data.mul_(10 if parameter.ndim == 2 else 1)
            directory, _, config = exported(tmp_path_factory.mktemp("rope"), module)
            made[arch, kind] = module, directory, config
        return made[arch, kind]

    return make


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
@torch.no_grad()
def test_logits_are_ours(exports, arch, kind):
    module, directory, config = exports(arch, kind)
    theirs = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    wanted = module(TOKENS)
    torch.testing.assert_close(theirs(TOKENS).logits, wanted, atol=2e-4, rtol=0)
    plain, _, _ = exports(arch, "none")
    assert (plain(TOKENS) - wanted).abs().max() > 5e-3, "the scaling is meant to change something"
    kind_there = "default" if kind == "ntk" else kind
    assert theirs.config.rope_parameters["rope_type"] == kind_there and ("rope_parameters" in config) == (kind != "ntk")
    back = load_model(directory)
    torch.testing.assert_close(back.module(TOKENS), wanted, atol=1e-5, rtol=0)
    assert back.model.context == T and (back.model.rope_scaling.kind == kind or kind == "ntk")


@pytest.mark.parametrize("kind", SCALINGS)
@torch.no_grad()
def test_logits_are_the_papers(exports, kind):
    """nGPT in float64 from the equations, frequencies and sharpness from `tests.rope`."""
    _, directory, config = exports("ngpt", kind)
    theirs = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    tensors = {name: tensor.detach() for name, tensor in theirs.named_parameters()}
    torch.testing.assert_close(theirs(TOKENS[:1]).logits[0].double(), reference_logits(tensors, config, TOKENS[0]), atol=2e-5, rtol=0)


def test_an_ngpt_there_has_no_other_kind(exports):
    _, directory, _ = exports("ngpt", "yarn")
    config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
    with pytest.raises(ValueError, match="rope_type dynamic: an nGPT has default, linear or yarn"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=True)


@pytest.mark.parametrize(
    "given, scaling",
    [
        ({"rope_type": "linear", "factor": 2.0}, {"kind": "linear", "factor": 2.0}),
        ({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 8}, {"kind": "yarn", "factor": 4.0, "original_context": 8}),
    ],
)
@torch.no_grad()
def test_a_llama_with_a_scaling_is_read(tmp_path, given, scaling):
    llama = make_llama(tmp_path, rope_parameters={"rope_theta": 500.0, **given})
    module = baseline(rope_scaling=scaling)
    load_initial(tmp_path, shards_of(module), module.blueprint)
    wanted = llama(TOKENS[:, :16]).logits
    torch.testing.assert_close(module(TOKENS[:, :16]), wanted, atol=1e-4, rtol=0)
    change_config(tmp_path, rope_parameters="absent", rope_theta=500.0, rope_scaling={"type": given["rope_type"], **given})
    loaded = load_model(tmp_path)
    torch.testing.assert_close(loaded.module(TOKENS[:, :16]), wanted, atol=1e-4, rtol=0)
    assert loaded.model.rope_scaling == RopeScaling(**scaling)


@pytest.mark.parametrize(
    "rope, recipe, message",
    [
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, {},
         'has rope_type "llama3"; valid are default, linear, yarn; choose another model'),
        ({"rope_type": "dynamic", "factor": 2.0}, {}, 'has rope_type "dynamic"; valid are default, linear, yarn'),
        ({"rope_type": "linear", "factor": 2.0}, {"kind": "linear", "factor": 4.0},
         "has factor 2.0, the recipe 4.0; set model.rope_scaling.factor to match"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "beta_fast": 16},
         {"kind": "yarn", "factor": 2.0, "original_context": 8}, "has beta_fast 16, and model.arch: gpt always 32"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
         {"kind": "yarn", "factor": 2.0, "original_context": 16}, "has original_max_position_embeddings 8, the recipe 16; set model.ro"),
    ],
)  # fmt: skip
def test_a_scaling_that_a_recipe_has_not_is_one_line(tmp_path, rope, recipe, message):
    make_llama(tmp_path)
    change_config(tmp_path, rope_parameters={"rope_theta": 500.0, **rope})
    module = baseline(rope_scaling=recipe)
    with pytest.raises(ConfigError) as error:
        load_initial(tmp_path, shards_of(module), module.blueprint)
    lines = [line for line in error.value.problems if "rope_type" not in line or "the recipe" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"checkpoint.initial = {tmp_path}: {message}")
    if "valid are" in message:
        with pytest.raises(ConfigError, match="valid are default, linear, yarn"):
            load_model(tmp_path)


@torch.no_grad()
def test_a_model_may_start_at_a_longer_context(tmp_path):
    """A recipe that scales what the model did not: the same weights, another function; another base alone is a mistake."""
    llama = make_llama(tmp_path)
    module = baseline(context=T, rope_scaling=SCALINGS["yarn"])
    load_initial(tmp_path, shards_of(module), module.blueprint)
    found, plain = module(TOKENS), llama(TOKENS).logits
    assert (found - plain).abs().max() > 1e-3
    with pytest.raises(ConfigError, match=r"has rope_theta 500.0, the recipe 400.0"):
        load_initial(tmp_path, shards_of(module), Blueprint(module.blueprint.model.model_copy(update={"rope_base": 400.0}), V))


def test_ntk_is_another_base_outside():
    model = Model(arch="gpt", hidden=64, heads=2, rope_base=500.0, rope_scaling=SCALINGS["ntk"])
    config = json.loads(json.dumps(make_config(model, V, "float32", {}, "ignore")))
    assert config["rope_theta"] == model.rope_theta == 500.0 * 3 ** (32 / 30) and "rope_parameters" not in config


@pytest.mark.parametrize("form", ["run", "export"])
@torch.no_grad()
def test_a_model_is_evaluated_at_a_longer_context(exports, form):
    """The scaling is the caller's; a yarn goes from the context that the model was trained with."""
    module, directory, _ = exports("ngpt", "none")
    path = directory if form == "export" else directory.parent / "run of export"
    for kind in SCALINGS:
        loaded = load_model(path, scaling=RopeScaling(kind=kind, factor=3.0))
        assert loaded.model.rope_scaling == RopeScaling(**SCALINGS[kind])
        wanted = Decoder(Blueprint(module.blueprint.model.model_copy(update={"rope_scaling": RopeScaling(**SCALINGS[kind])}), V))
        wanted.load_state_dict(module.state_dict())
        torch.testing.assert_close(loaded.module(TOKENS), wanted(TOKENS), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="yarn needs one above 1"):
        load_model(path, scaling=RopeScaling(kind="yarn"))
