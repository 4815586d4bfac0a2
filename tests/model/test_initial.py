"""The initial model is a function of the seed and each parameter's name alone."""

import math
from itertools import pairwise

import pytest
import torch

from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import Axis, RankGrid
from megatron_ngpt.parallel.shards import Shard, shards_of
from megatron_ngpt.sphere.renormalise import Renormaliser
from tests.model.small import blueprint


def initial(plan, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every parameter of this rank's model before rows are rescaled."""
    module = Decoder(plan)
    initialise(shards_of(module), seed)
    return {parameter.placement.record.name: parameter.detach() for parameter in module.parameters()}


def runs(shard: Shard, cuts: list[int]) -> list[Shard]:
    """The shard cut into runs, each in a buffer of its own, as ZeRO's ranks hold them."""
    bounds = [0, *sorted(cut % (shard.count + 1) for cut in cuts), shard.count]
    found = []
    for start, stop in pairwise(bounds):
        buffer = torch.full((stop - start + 4,), -7.0) if stop > start else None
        found.append(Shard(shard.placement, start, stop - start, buffer, 4, 0))
    return found


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
@pytest.mark.parametrize(("ranks", "shard"), [(1, "vocab"), (2, "vocab"), (2, "hidden")])
def test_equal_bit_for_bit_in_every_layout(arch, ranks, shard, monkeypatch):
    monkeypatch.setattr("megatron_ngpt.model.initial._BLOCK_ENTRIES", 100)  # four rows: boxes start and end within blocks
    whole = initial(blueprint(arch))
    found = {name: torch.full_like(tensor, torch.nan) for name, tensor in whole.items()}
    for rank in range(ranks):
        module = Decoder(blueprint(arch, options={"grid": RankGrid(tensor=Axis(rank, ranks))}, embedding_shard=shard))
        cut = {name: runs(shard, [17, 100, 101]) for name, shard in shards_of(module).items()}
        for part in range(4):
            shards = {name: parts[part] for name, parts in cut.items()}
            initialise(shards, 0)
            for name, one in shards.items():
                for box in one.boxes(one.master):
                    found[name].view(found[name].shape[0], -1)[box.rows, box.columns] = box.values
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name


def test_equal_with_blocks_of_the_shipped_size():
    plan = blueprint(layers=1, hidden=1024, heads=4, ffn=600)
    module = Decoder(plan)
    whole = initial(plan)["model.layers.0.mlp.up_proj.weight"]
    assert whole.numel() > 2 * 2**18
    shard = shards_of(module)["model.layers.0.mlp.up_proj.weight"]
    for one in runs(shard, [300_000, 262_144 + 5]):
        initialise({one.name: one}, 0)
        assert torch.equal(one.master, whole.view(-1)[one.start : one.start + one.count])


def test_independent_of_other_parameters():
    few, many = initial(blueprint(layers=1)), initial(blueprint(layers=3, vocabulary=50))
    assert few.keys() < many.keys()
    for name in few:
        rows = slice(0, few[name].shape[0])
        assert torch.equal(few[name], many[name][rows]), name


def test_no_two_matrices_are_equal_and_the_seed_counts():
    first, second = initial(blueprint(), 0), initial(blueprint(), 1)
    matrices = [name for name, tensor in first.items() if tensor.ndim == 2 and name.endswith("weight")]
    heads = {name: tuple(first[name].flatten()[:8].tolist()) for name in matrices}
    assert len(set(heads.values())) == len(matrices)
    assert all(not torch.equal(first[name], second[name]) for name in matrices)
    assert all(torch.equal(first[name], second[name]) for name in first if name not in matrices)


@pytest.mark.parametrize("arch", ["ngpt", "gpt"])
def test_deviations(arch):
    hidden, layers = 128, 3
    found = initial(blueprint(arch, vocabulary=500, hidden=hidden, layers=layers, ffn=256))
    for name, tensor in found.items():
        if tensor.ndim == 2 and name.endswith("weight"):
            if arch == "ngpt":
                wanted = 1 / math.sqrt(hidden)
            else:
                wanted = 0.02 / (math.sqrt(2 * layers) if "o_proj" in name or "down_proj" in name else 1)
            assert tensor.std().item() == pytest.approx(wanted, rel=0.03), name
            assert abs(tensor.mean().item()) < 4 * wanted / math.sqrt(tensor.numel()), name
        elif arch == "gpt":
            assert (tensor == 1).all(), name


def test_step_0_is_on_the_sphere():
    module = Decoder(blueprint())
    shards = shards_of(module)
    initialise(shards, 0)
    vectors = {shard.name: shard.master.clone() for shard in shards.values() if not shard.spherical}
    Renormaliser(shards, RankGrid()).renormalise()
    spherical = {shard.name for shard in shards.values() if shard.spherical}
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj",
             "mlp.down_proj")  # fmt: skip
    blocks = {f"model.layers.{layer}.{kind}.weight" for layer in range(2) for kind in kinds}
    assert spherical == {"model.embed_tokens.weight", "lm_head.weight"} | blocks
    for shard in shards.values():
        if shard.spherical:
            rows = shard.master.view(-1, 24)  # rows run along the hidden axis
            assert (rows.double().square().sum(1).sqrt() - 1).abs().max() <= 1e-6, shard.name
        else:
            assert torch.equal(shard.master, vectors[shard.name])


def test_the_baseline_has_no_sphere():
    assert not any(shard.spherical for shard in shards_of(Decoder(blueprint("gpt"))).values())
