"""The table of parameters and the modules know the same parameters, in every assembly; the optimiser's groups follow the table."""

import itertools

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.config.recipe import Model, Optimizer
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.pipeline import DecoderPipeline
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import Axis, RankGrid, make_grid
from megatron_ngpt.training.optimizer import base_optimizer
from tests.model.small import SHAPE, VOCABULARY, blueprint
from tests.on_ranks import on_ranks

ARCHES = ("ngpt", "gpt")
SCALES_AND_NORMS = ("_scale", "alpha", "norm.weight")


@pytest.mark.parametrize(
    ("arch", "kv_heads", "shard", "tensor"), list(itertools.product(ARCHES, [None, 2], ["vocab", "hidden"], [1, 2]))
)
def test_a_module_makes_the_parameters_of_the_table_and_no_others(arch, kv_heads, shard, tensor):
    grid = RankGrid(tensor=Axis(tensor - 1, tensor))
    plan = blueprint(arch, kv_heads=kv_heads, embedding_shard=shard, options={"grid": grid})
    with torch.device("meta"):
        module = Decoder(plan)
    found = {}
    for number, layer in enumerate(module.layers):
        for name, parameter in layer.named_parameters():
            record = parameter.placement.record
            assert record == plan.parameters[record.name] and record.layer == number
            assert record.name.endswith(name) and record.name not in found
            assert tuple(parameter.shape) == record.local_shape(tensor)
            found[record.name] = parameter
    assert list(found) == list(plan.parameters)  # in one order, on which flat buffers depend


def stage_of(arch: str) -> DecoderPipeline:
    """This rank's stage of a small model."""
    join_deepspeed(torch.device("cpu"))
    return DecoderPipeline(Blueprint(Model(arch=arch, **SHAPE), VOCABULARY, make_grid(pipeline=dist.get_world_size())))


def stage_parameters(arch: str) -> list[tuple[str, int]]:
    """(name, numbers) of this stage's parameters."""
    return [(p.placement.record.name, p.numel()) for p in stage_of(arch).parameters()]


@pytest.mark.parametrize("arch", ARCHES)
def test_stages_together_make_the_parameters_of_the_table(arch):
    found = [pair for stage in on_ranks(2, stage_parameters, arch) for pair in stage]
    assert sorted(found) == sorted((name, record.size) for name, record in blueprint(arch).parameters.items())


# The optimiser's groups.


def decays(module: torch.nn.Module, weight_decay: float) -> dict[str, float]:
    """The decay of every parameter's group."""
    base = base_optimizer(Optimizer(weight_decay=weight_decay), module)
    return {p.placement.record.name: group["weight_decay"] for group in base.param_groups for p in group["params"]}


def stage_decays(arch: str) -> dict[str, float]:
    return decays(stage_of(arch), 0.1)


def check_decays(found: dict[str, float], arch: str) -> None:
    assert found == {name: 0.0 if name.endswith(SCALES_AND_NORMS) else 0.1 for name in blueprint(arch).parameters}


@pytest.mark.parametrize("arch", ARCHES)
def test_matrices_decay_and_scales_and_norms_never_do(arch):
    check_decays(decays(Decoder(blueprint(arch)), 0.1), arch)
    assert set(decays(Decoder(blueprint(arch)), 0.0).values()) == {0.0}


@pytest.mark.parametrize("arch", ARCHES)
def test_so_over_pipeline_stages(arch):
    first, second = on_ranks(2, stage_decays, arch)
    check_decays(first | second, arch)
