"""The bytes that config.costs states of a step against those that the process groups are given, in every family of layouts."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.config.costs.share import Share
from megatron_ngpt.config.costs.traffic import CONTROL_BYTES, traffic
from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, engine_config, read_deepspeed
from megatron_ngpt.config.grid import given_sizes
from megatron_ngpt.config.recipe import Data, Dataset, Model, Optimizer, Parallel, Recipe, Training
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.sphere import rows
from megatron_ngpt.training.engine import Engine
from tests.collectives import Call, counted
from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import TIGHT, WIRE
from tests.on_ranks import on_ranks

VOCABULARY = 333  # divides over neither two nor four tensor ranks
MODEL = {"layers": 4, "hidden": 48, "heads": 4, "kv_heads": 2, "context": 32}


def cut(tensor=1, pipeline=1, json="ds_configs/zero0.json", model=None, data=None, optimizer=None, recompute="none", **keys) -> dict:
    """A recipe's sections: ranks and their axes, and what else decides what travels."""
    return {
        "model": MODEL | (model or {}), "parallel": {"tensor": tensor, "pipeline": pipeline, **keys}, "deepspeed": json,
        "optimizer": optimizer or {}, "data": data or {}, "recompute": recompute,
    }  # fmt: skip


def zero(stage: int, bf16: bool = False, offload: bool = False) -> str:
    return f"ds_configs/{'bf16-' if bf16 else ''}zero{stage}{'-offload' if offload else ''}.json"


HIDDEN, GPT, MASKED = {"embedding_shard": "hidden"}, {"arch": "gpt"}, {"document_boundaries": "mask"}
FAMILIES = {  # ranks -> what they train, one after another
    2: {
        **{f"data 2, ZeRO-{stage}": cut(json=zero(stage)) for stage in range(4)},
        **{f"data 2, bf16 ZeRO-{stage}": cut(json=zero(stage, bf16=True)) for stage in (1, 2, 3)},
        **{f"bf16 on the wire: data 2, ZeRO-{stage}": cut(json=WIRE.format(stage)) for stage in (2, 3)},
        "fp32 on the wire: data 2, bf16 ZeRO-2": cut(json="tests/distributed/bf16-zero2-wire-fp32.json"),
        "data 2, ZeRO-2, offload": cut(json=zero(2, offload=True)),
        "data 2, ZeRO-3, offload": cut(json=zero(3, offload=True)),
        "decay: data 2, ZeRO-1": cut(json=zero(1), optimizer={"weight_decay": 0.1}),
        "gpt: data 2, ZeRO-2": cut(json=zero(2), model=GPT),
        "tensor 2": cut(2),
        "tensor 2, sequence": cut(2, sequence=True),
        "tensor 2, hidden-sharded": cut(2, model=HIDDEN),
        "tensor 2, hidden-sharded, sequence": cut(2, sequence=True, model=HIDDEN),
        "tensor 2, bf16, sequence": cut(2, json=zero(1, bf16=True), sequence=True, model={"residual_dtype": "bfloat16"}),
        "recompute: tensor 2": cut(2, recompute="full"),
        "recompute: tensor 2, sequence": cut(2, sequence=True, recompute="full"),
        "gpt, recompute: tensor 2, sequence": cut(2, sequence=True, recompute="full", model=GPT),
        "gpt, recompute: tensor 2": cut(2, recompute="full", model=GPT),
        "selective: tensor 2, sequence": cut(2, sequence=True, recompute="selective"),
        "gpt: tensor 2, sequence": cut(2, sequence=True, model=GPT),
        "context 2, ulysses": cut(context=2, model={"heads": 6, "kv_heads": 3}),
        "context 2, ring": cut(context=2, context_kind="ring"),
        "recompute: context 2, ulysses": cut(context=2, recompute="full"),
        "recompute, bf16: context 2, ring": cut(context=2, context_kind="ring", recompute="full", json=zero(1, bf16=True)),
        "selective: context 2, ring": cut(context=2, context_kind="ring", recompute="selective"),
        "pipeline 2": cut(pipeline=2),
        "masked: pipeline 2": cut(pipeline=2, data=MASKED),
        "gpt, bf16: pipeline 2": cut(pipeline=2, json=zero(1, bf16=True), model=GPT | {"residual_dtype": "bfloat16"}),
    },
    3: {
        **{f"data 3, ZeRO-{stage}": cut(json=zero(stage)) for stage in (1, 2, 3)},
        "data 3, ZeRO-3, all cut": cut(json=TIGHT),
        "tangent: data 3, ZeRO-3, all cut": cut(json=TIGHT, optimizer={"tangent": True}),
        "decay: data 3, ZeRO-2": cut(json=zero(2), optimizer={"weight_decay": 0.1}),
    },
    4: {
        **{f"tensor 2 × data 2, ZeRO-{stage}": cut(2, json=zero(stage)) for stage in (1, 2, 3)},
        "tensor 2 × data 2, hidden-sharded, ZeRO-1": cut(2, json=zero(1), model=HIDDEN),
        "tensor 2 × data 2, hidden-sharded, ZeRO-3, all cut": cut(2, json=TIGHT, model=HIDDEN),
        "context 4, ulysses, ZeRO-3": cut(context=4, json=zero(3)),
        "context 2 × tensor 2, ring, sequence": cut(2, context=2, context_kind="ring", sequence=True),
        "context 2 × data 2, ulysses, ZeRO-2": cut(context=2, json=zero(2)),
        "masked: context 2 × pipeline 2, ring": cut(pipeline=2, context=2, context_kind="ring", data=MASKED),
        "pipeline 4": cut(pipeline=4),
        "pipeline 2 × tensor 2, sequence": cut(2, 2, sequence=True),
        "masked: pipeline 2 × tensor 2, sequence": cut(2, 2, sequence=True, data=MASKED),
        "pipeline 2 × data 2, ZeRO-1": cut(pipeline=2, json=zero(1)),
    },
    8: {"pipeline 2 × tensor 2 × data 2, ZeRO-1": cut(2, 2, json=zero(1))},
}  # fmt: skip


def recipe_of(keys: dict) -> Recipe:
    """The recipe of one of the layouts: three micro-batches of two sequences a data rank would see alone."""
    return Recipe(
        model=Model(**keys["model"]), parallel=Parallel(**keys["parallel"]), optimizer=Optimizer(**keys["optimizer"]),
        data=Data(tokenizer="none", train=[Dataset(prefix="none")], **keys["data"]), deepspeed=str(REPOSITORY / keys["deepspeed"]),
        training=Training(output="none", global_batch=12, micro_batch=2, recompute=keys["recompute"]),
    )  # fmt: skip


def moved(ranks: int) -> dict[str, tuple[dict, dict]]:
    """By layout, bytes of a step after the first: counted and stated, by kind, slice and whether they are sums over cut rows."""
    join_deepspeed(torch.device("cpu"))
    return {name: moved_by(recipe_of(keys)) for name, keys in FAMILIES[ranks].items()}


def moved_by(recipe: Recipe) -> tuple[dict, dict]:
    choice = read_deepspeed(recipe.deepspeed)
    grid = make_grid(**given_sizes(recipe.parallel))
    engine = Engine(recipe, VOCABULARY, engine_config(recipe, choice, grid.data.size), grid, torch.device("cpu"))
    engine.initialise()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (12 // grid.data.size, MODEL["context"] + 1)).astype(np.int32)
    batch = SimpleNamespace(tokens=tokens, documents=np.zeros_like(tokens))
    engine.step(batch, 1e-3, measure=False)
    with counted() as calls, apart(calls) as of_rows:
        engine.step(batch, 1e-3, measure=False)
    names = ("tensor", "context", "replicas")
    slices = {tuple(ranks): name for name in names for ranks in grid.shape.slices(name) if len(ranks) > 1}
    same = "replicas" if grid.shape.slices("context") == grid.shape.slices("replicas") else "context"  # then counted as those
    found, stated = Counter(), Counter()
    for call in [call for call in calls if call.nbytes > CONTROL_BYTES] + of_rows:
        found[call.kind, slices.get(call.ranks, "pipeline"), call in of_rows] += call.nbytes
    for one in traffic(Share(recipe, choice, VOCABULARY, dist.get_world_size(), grid.pipeline.rank, grid.replicas.rank)):
        stated[one.kind, same if one.along == "context" else one.along, one.purpose == "sphere"] += one.nbytes
    return dict(found), dict(stated)


@contextmanager
def apart(calls: list[Call]) -> Iterator[list[Call]]:
    """The calls that reduce sums over cut rows, taken out of `calls`: a few floats, which size alone does not tell from control."""
    of_rows, reduce_vector = [], rows.reduce_vector

    def reduce_apart(*args, **kwargs):
        before = len(calls)
        result = reduce_vector(*args, **kwargs)
        of_rows.extend(calls[before:])
        del calls[before:]
        return result

    rows.reduce_vector = reduce_apart
    try:
        yield of_rows
    finally:
        rows.reduce_vector = reduce_vector


@pytest.mark.parametrize("ranks", FAMILIES)
def test_a_step_moves_the_bytes_that_are_stated(ranks):
    everywhere = on_ranks(ranks, moved, ranks, seconds=250)
    for name in FAMILIES[ranks]:
        for rank, of_layouts in enumerate(everywhere):
            found, stated = of_layouts[name]
            assert stated and found == stated, (name, rank)


def test_one_rank_moves_nothing():
    assert traffic(Share(recipe_of(cut()), DeepSpeedChoice(0, False, False, {}), VOCABULARY, 1)) == []


def test_parameters_that_deepspeed_lets_go_of_are_gathered_twice():
    """A reuse distance shorter than the numbers between two uses: only the end of the network stays."""
    recipe = recipe_of(cut(json=TIGHT))


    def gathers(**keys) -> list[int]:
        raw = {"zero_optimization": {"stage3_param_persistence_threshold": 0} | keys}
        return [times for _, times in Share(recipe, DeepSpeedChoice(3, False, False, raw), VOCABULARY, 2).gathers()]

    kept, let_go = gathers(), gathers(stage3_max_reuse_distance=1)
    assert set(kept) == {3} and set(let_go[:-2]) == {6}
