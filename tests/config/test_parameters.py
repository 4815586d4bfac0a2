"""The table of parameters against the shapes and starts that docs/maths.md states."""

import math

import pytest

from megatron_ngpt.config.parameters import Constant, Normal, ParameterRecord, parameter_table
from megatron_ngpt.config.recipe import Model, Scales

D, H, G, K, F, V = 24, 4, 2, 6, 40, 37
SHAPE = {"layers": 2, "hidden": D, "heads": H, "kv_heads": G, "ffn": F, "context": 16}
LINEAR = {"q_proj": (H * K, D), "k_proj": (G * K, D), "v_proj": (G * K, D), "o_proj": (D, H * K)}  # of exports
LINEAR |= {"up_proj": (F, D), "gate_proj": (F, D), "down_proj": (D, F)}
SCALES = {"self_attn.qk_scale": (G, K), "self_attn.alpha": (D,), "mlp.up_scale": (F,), "mlp.gate_scale": (F,), "mlp.alpha": (D,)}


def table(arch: str = "ngpt", **keys) -> dict[str, ParameterRecord]:
    return parameter_table(Model(arch=arch, **SHAPE | keys), V)


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_every_parameter_has_the_name_and_shape_of_the_export(arch):
    wanted = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D)}
    wanted |= {"logit_scale": (V,)} if arch == "ngpt" else {"model.norm.weight": (D,)}
    for block in (f"model.layers.{number}" for number in range(2)):
        for name, shape in LINEAR.items():
            wanted[f"{block}.{'mlp' if F in shape else 'self_attn'}.{name}.weight"] = shape
        if arch == "ngpt":
            wanted |= {f"{block}.{name}": shape for name, shape in SCALES.items()}
        else:
            wanted |= {f"{block}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
    assert {name: record.exported_shape for name, record in table(arch).items()} == wanted


def test_kinds_starts_and_what_acts():
    scales = Scales.model_validate({"alpha": {"init": 0.03, "scale": 0.5}, "qk": {"init": 2.0}})
    for name, record in table(scales=scales).items():
        assert record.name == name
        if name.endswith("weight"):
            assert (record.kind, record.spherical, record.decays) == ("matrix", True, True)
            assert (record.start, record.factor) == (Normal(1 / math.sqrt(D)), 1.0)
        else:
            assert (record.kind, record.spherical, record.decays) == ("scale", False, False), name
        assert record.absolute == name.endswith("alpha")
        assert record.transposed == name.endswith(("o_proj.weight", "down_proj.weight"))
    block = "model.layers.1"
    found = {name: table(scales=scales)[name] for name in (f"{block}.mlp.alpha", f"{block}.self_attn.qk_scale", f"{block}.mlp.up_scale")}
    assert [record.start for record in found.values()] == [Constant(0.5), Constant(1 / math.sqrt(D)), Constant(1.0)]
    assert [record.factor for record in found.values()] == pytest.approx([0.03 / 0.5, 2 * math.sqrt(D), 1.0])


def test_the_baseline_has_norms_and_nothing_on_the_sphere():
    records = table("gpt").values()
    assert not any(record.spherical or record.absolute or record.kind == "scale" for record in records)
    norms = [record for record in records if record.kind == "norm"]
    assert len(norms) == 5 and all(record.start == Constant(1.0) and not record.decays and record.cut is None for record in norms)
    deviations = {record.name.split(".")[-2]: record.start.deviation for record in records if record.kind == "matrix"}
    into_residual = 0.02 / math.sqrt(2 * 2)
    assert deviations == pytest.approx(dict.fromkeys(deviations, 0.02) | {"o_proj": into_residual, "down_proj": into_residual})


@pytest.mark.parametrize("shard", ["vocab", "hidden"])
def test_what_tensor_ranks_divide(shard):
    records = table(embedding_shard=shard)
    local = {name: record.local_shape(2) for name, record in records.items()}
    assert local["model.embed_tokens.weight"] == ((19, D) if shard == "vocab" else (V, D // 2))  # 37 entries padded to 38
    assert local["lm_head.weight"] == (19, D) and local["logit_scale"] == (19,)
    block = "model.layers.0"
    assert local[f"{block}.self_attn.qk_scale"] == (1, K) and local[f"{block}.self_attn.k_proj.weight"] == (K, D)
    assert local[f"{block}.self_attn.o_proj.weight"] == (H * K // 2, D) and local[f"{block}.mlp.down_proj.weight"] == (F // 2, D)
    assert local[f"{block}.mlp.alpha"] == (D,) and local[f"{block}.mlp.gate_scale"] == (F // 2,)
    with pytest.raises(ValueError, match=r"up_proj.weight: 40 does not divide over 3 tensor ranks"):
        records[f"{block}.mlp.up_proj.weight"].local_shape(3)


def test_padding_is_the_least_that_divides():
    for entries, here in ((1, 1), (3, 1), (4, 2), (32_000, 10_667)):
        assert parameter_table(Model(**SHAPE), entries)["logit_scale"].local_shape(3) == (here,)


def test_layers_are_those_of_the_layer_list():
    for name, record in table().items():
        number = name.split(".")[2] if name.startswith("model.layers") else None
        assert record.layer == (int(number) + 1 if number else 0 if "embed" in name else 3)
