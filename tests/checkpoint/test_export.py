"""Exports: exact names and shapes, what others compute with them, and the way back."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ngpt import cli
from megatron_ngpt.checkpoint.export import export
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.grid import Axis, RankGrid
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.layouts import cut, run_ranks
from tests.checkpoint.trained import SHAPE, exported, make_model, save_run
from tests.reference import reference_logits

V, D, K, F, H, G = 33, 24, 6, 40, 4, 2


def shapes(arch):
    """Every name and shape of the documented table."""
    found = {"model.embed_tokens.weight": [V, D], "lm_head.weight": [V, D]}
    found |= {"logit_scale": [V]} if arch == "ngpt" else {"model.norm.weight": [D]}
    for i in range(2):
        at, ff = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        found |= {f"{at}q_proj.weight": [H * K, D], f"{at}k_proj.weight": [G * K, D], f"{at}v_proj.weight": [G * K, D]}
        found |= {f"{at}o_proj.weight": [D, H * K], f"{ff}down_proj.weight": [D, F]}
        found |= {f"{ff}up_proj.weight": [F, D], f"{ff}gate_proj.weight": [F, D]}
        if arch == "ngpt":
            found |= {f"{at}qk_scale": [G, K], f"{at}alpha": [D], f"{ff}alpha": [D]}
            found |= {f"{ff}up_scale": [F], f"{ff}gate_scale": [F]}
        else:
            layer = f"model.layers.{i}."
            found |= {f"{layer}input_layernorm.weight": [D], f"{layer}post_attention_layernorm.weight": [D]}
    return found


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_names_and_shapes(tmp_path, arch):
    directory, tensors, config = exported(tmp_path, make_model(arch))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == shapes(arch)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    code = ["configuration_ngpt.py", "modeling_ngpt.py"] if arch == "ngpt" else []
    assert sorted(path.name for path in directory.iterdir()) == sorted(["config.json", "model.safetensors", *code])
    wanted = {"hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H, "num_key_value_heads": G, "head_dim": K}
    wanted |= {"intermediate_size": F, "vocab_size": V, "max_position_embeddings": 16, "rope_theta": 500.0}
    wanted |= {"model_type": "ngpt", "update": "lerp"} if arch == "ngpt" else {"model_type": "llama"}
    assert wanted.items() <= config.items()


def test_scales_are_the_values_that_act(tmp_path):
    module = make_model(scales={"alpha": {"init": 0.2, "scale": 0.5}, "qk": {"init": 3.0}, "gate": {"init": 2.0}})
    stored = {name: shard.master.clone() for name, shard in shards_of(module).items()}
    _, tensors, _ = exported(tmp_path, module)
    alpha, at = "model.layers.1.mlp.alpha", "model.layers.1.self_attn."
    torch.testing.assert_close(tensors[alpha], (stored[alpha] * 0.4).abs())
    torch.testing.assert_close(tensors[f"{at}qk_scale"].flatten(), stored[f"{at}qk_scale"] * 3 * 24**0.5)
    torch.testing.assert_close(tensors["model.layers.0.mlp.gate_scale"], stored["model.layers.0.mlp.gate_scale"] * 2)
    torch.testing.assert_close(tensors["logit_scale"], stored["logit_scale"] * 24**0.5)


def test_bfloat16(tmp_path):
    _, exact, _ = exported(tmp_path, make_model(), "float")
    _, rounded, config = exported(tmp_path, make_model(), "bfloat", dtype="bfloat16")
    assert config["torch_dtype"] == "bfloat16"
    assert all(rounded[name].equal(exact[name].bfloat16()) for name in exact)


def test_shards_with_an_index(tmp_path):
    whole_directory, whole, _ = exported(tmp_path, make_model(), "whole")
    directory, tensors, _ = exported(tmp_path, make_model(), "sharded", shard_bytes=8000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, file in index["weight_map"].items():
        assert load_file(directory / file)[name].equal(whole[name])
    assert index["weight_map"].keys() == whole.keys() == tensors.keys()
    module = Decoder(Blueprint(Model(**SHAPE), V))
    load_initial(directory, shards_of(module), module.blueprint)
    assert whole_directory.is_dir()


def test_baseline_reads_as_llama(tmp_path):
    import transformers

    module = make_model("gpt")
    directory, _, _ = exported(tmp_path, module)
    llama, report = transformers.LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens).logits, module(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("update", ["lerp", "slerp"])
def test_independent_implementation_gives_our_loss(tmp_path, update):
    module = make_model(update=update)
    _, tensors, config = exported(tmp_path, module)
    tokens = torch.randint(V, (17,), generator=torch.Generator().manual_seed(0))
    logits = reference_logits(tensors, config, tokens[:-1])
    with torch.no_grad():
        ours = module(tokens[None, :-1])
        loss = module(tokens[None, :-1], tokens[None, 1:])
    assert logits.std() > 0.1
    torch.testing.assert_close(ours[0].double(), logits, atol=1e-5, rtol=0)
    assert abs(torch.nn.functional.cross_entropy(logits, tokens[1:]).item() - loss.item()) < 1e-5


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_export_initial_export(tmp_path, arch):
    directory, tensors, _ = exported(tmp_path, make_model(arch), "first")
    module = Decoder(Blueprint(Model(arch=arch, **SHAPE, scales={"alpha": {"init": 0.3}, "up": {"scale": 0.7}}), V))
    load_initial(directory, shards_of(module), module.blueprint)
    _, again, _ = exported(tmp_path, module, "second")
    for name, tensor in tensors.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-6 if name.endswith(("scale", "alpha")) else 0, atol=0)


def initial_worker(rank, directory, embedding):
    """Rows of a padded vocabulary over two tensor ranks, and cut rows: the boxes, compared with the whole model's."""
    model = Model(**SHAPE, embedding_shard=embedding)
    whole = Decoder(Blueprint(model, V))
    load_initial(directory, shards_of(whole), whole.blueprint)
    part = Decoder(Blueprint(model, V, RankGrid(tensor=Axis(rank, 2))))
    matrices = {shard.name: shard.master.view(shard.placement.shape) for shard in shards_of(whole).values()}
    compared = 0
    for data_rank in range(3):
        shards = cut(shards_of(part), data_rank, 3)
        load_initial(directory, shards, part.blueprint)
        for shard in shards.values():
            for box in shard.boxes(shard.master):
                matrix = matrices[shard.name]
                matrix = matrix if matrix.dim() == 2 else matrix.unsqueeze(1)
                assert box.values.equal(matrix[box.rows, box.columns]), shard.name
                compared += box.values.numel()
    return compared


@pytest.mark.parametrize("embedding", ["vocab", "hidden"])
def test_initial_in_other_layouts(tmp_path, embedding):
    directory, tensors, _ = exported(tmp_path, make_model())
    replicated = 4 * D  # the eigen learning rates
    numbers = sum(tensor.numel() for tensor in tensors.values())
    assert sum(run_ranks(2, initial_worker, directory, embedding)) == numbers + replicated


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden": 32}, r"checkpoint\.initial = .*: has hidden_size 24, the recipe 32; set model\.hidden"),
        ({"arch": "gpt"}, r'checkpoint\.initial = .*: has model_type "ngpt", the recipe "llama"; set model\.arch'),
        ({"kv_heads": None}, r"checkpoint\.initial = .*: has num_key_value_heads 2, the recipe 4; set model\.kv_heads"),
        ({"update": "slerp"}, r'checkpoint\.initial = .*: has update "lerp", the recipe "slerp"; set model\.update'),
    ],
)
def test_initial_of_another_model_is_refused(tmp_path, changes, message):
    directory, _, _ = exported(tmp_path, make_model())
    module = Decoder(Blueprint(Model(**{**SHAPE, **changes}), V))
    with pytest.raises(ConfigError, match=message):
        load_initial(directory, shards_of(module), module.blueprint)


def test_initial_vocabulary_and_tensors_are_checked(tmp_path):
    directory, tensors, _ = exported(tmp_path, make_model())
    module = Decoder(Blueprint(Model(**SHAPE), 40))
    with pytest.raises(ConfigError, match=r"has vocab_size 33, the recipe 40; set model\.vocab"):
        load_initial(directory, shards_of(module), module.blueprint)
    del tensors["logit_scale"]
    save_file({**tensors, "extra": torch.zeros(2)}, directory / "model.safetensors")
    module = Decoder(Blueprint(Model(**SHAPE), V))
    with pytest.raises(ConfigError) as error:
        load_initial(directory, shards_of(module), module.blueprint)
    assert [problem.split(" has for ")[1] for problem in error.value.problems] == [
        "extra shape [2], the model has none",
        "logit_scale none, the model has shape [33]",
    ]


def refused_worker(rank, directory):
    module = Decoder(Blueprint(Model(**{**SHAPE, "layers": 2 + rank}), V))
    with pytest.raises(ConfigError) as error:
        load_initial(directory, shards_of(module), module.blueprint)
    return str(error.value)


def test_refused_on_one_rank_is_refused_on_all(tmp_path):
    directory, _, _ = exported(tmp_path, make_model())
    messages = run_ranks(2, refused_worker, directory)
    assert messages[0] == messages[1] and "num_hidden_layers 2, the recipe 3" in messages[0]


def test_what_export_refuses(tmp_path):
    directory, _, _ = exported(tmp_path, make_model())
    with pytest.raises(ConfigError, match=r"OUT_DIR: .* exists"):
        export(tmp_path / "run of export", directory)
    with pytest.raises(ConfigError, match="is exported already"):
        export(directory, tmp_path / "again")
    with pytest.raises(ConfigError, match=r"MODEL: .*nowhere is no checkpoint"):
        export(tmp_path / "nowhere", tmp_path / "again")
    (tmp_path / "empty").mkdir()
    export(tmp_path / "run of export", tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_command(tmp_path, monkeypatch, capsys):
    save_run(tmp_path / "run", make_model())
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["ngpt", "export", str(tmp_path / "run"), str(out), "--dtype", "bfloat16"])
    assert cli.main() == 0
    assert load_file(out / "model.safetensors")["logit_scale"].dtype == torch.bfloat16
    assert cli.main() == 2
    assert capsys.readouterr().err == f"OUT_DIR: {out} exists; valid is a new name or an empty directory\n"
