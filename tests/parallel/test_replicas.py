"""Flipped bits in one rank's weights are found, and named by rank, host and parameter, wherever another copy tells of them."""

import socket

import pytest
import torch.distributed as dist

from megatron_ngpt.parallel.replicas import divergence
from tests.faults.poison import flip
from tests.on_ranks import on_ranks
from tests.training.vetoes import FAMILIES, build, step


def found(ranks: int, name: str, parameter: str, copy: bool) -> tuple[str | None, str | None]:
    """Before and after a bit flips on the last rank: in its copy for the forward pass, or in its masters."""
    engine = build(FAMILIES[ranks][name] if name in FAMILIES.get(ranks, {}) else {"json": "ds_configs/zero0.json"})
    for number in (1, 2):
        step(engine, number)
    module = engine.engine.module
    before = divergence(module, engine.shards, engine.grid)
    if dist.get_rank() == ranks - 1:
        chosen = next(p for p in module.parameters() if p.placement.record.name.endswith(parameter))
        flip(chosen.detach() if copy else engine.shards[chosen.placement.record.name].master)
    return before, divergence(module, engine.shards, engine.grid)


@pytest.mark.parametrize("ranks, family, parameter, copy, told", [
    (2, "data 2, zero0", "up_proj.weight", False, "rank 0 on HOST and rank 1 on HOST hold copies of NAME that differ"),
    (3, "three of ZeRO-0", "up_proj.weight", False, "rank 2 on HOST: NAME is not what the 2 other ranks have"),
    (2, "tensor 2", "alpha", False, "rank 0 on HOST and rank 1 on HOST hold copies of NAME that differ"),
    (2, "data 2, bf16-zero2", "up_proj.weight", True, "hold copies of NAME that differ"),
])  # fmt: skip
def test_a_flipped_bit_is_named(ranks, family, parameter, copy, told):
    for before, after in on_ranks(ranks, found, ranks, family, parameter, copy, seconds=150):
        assert before is None and after is not None
        wanted = told.replace("HOST", socket.gethostname()).split("NAME")
        assert all(part in after for part in wanted) and parameter in after


def well(names: list[str]) -> list[str | None]:
    """After some steps."""
    said = []
    for name in names:
        engine = build(next(family[name] for family in FAMILIES.values() if name in family))
        for number in (1, 2):
            step(engine, number)
        said.append(divergence(engine.engine.module, engine.shards, engine.grid))
    return said


def test_healthy_ranks_are_left_alone_in_every_family():
    names = list(FAMILIES[2])
    assert on_ranks(2, well, names, seconds=150) == [[None] * len(names)] * 2
