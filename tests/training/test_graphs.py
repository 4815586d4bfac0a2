"""What is compiled of a step under ZeRO-3: whole blocks, between the hooks that gather their weights for forward and again for backward.

The compiler makes its graphs, of forward and of backward, and torch's own kernels run them: its kernels are a matter for
`tests/distributed/test_compiled.py`.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, engine_config
from megatron_ngpt.config.recipe import Data, Dataset, Model, Recipe, Training
from megatron_ngpt.model.blocks import Block
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.training.engine import Engine
from tests.collectives import counted
from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import TIGHT
from tests.on_ranks import on_ranks

VOCABULARY, RANKS, STEPS, CPU = 331, 2, 3, torch.device("cpu")
MODEL = {"layers": 4, "hidden": 48, "heads": 4, "kv_heads": 2, "context": 32}


@dataclass(frozen=True)
class Steps:
    """What some steps came to.

    Attributes:
        results: loss and gradient norm of each, and at last ‖w‖ of all masters here.
        moved: bytes by kind of collective.
        kept: whole weights of blocks that were still there as each backward pass began.
        frames: functions that were compiled, by whether they were compiled whole, as dynamo counts them.
        breaks: of graphs, by their reasons.
        blocks: versions of a block's function that were compiled.
    """

    results: list[tuple[float, ...]]
    moved: Counter
    kept: list[int]
    frames: dict[str, int]
    breaks: list[str]
    blocks: int


def steps(kind: str, compiled: bool, recompute: str) -> Steps:
    from torch._dynamo import reset
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch._dynamo.utils import counters

    reset()
    counters.clear()
    recipe = Recipe(
        model=Model(arch=kind, **MODEL), data=Data(tokenizer="none", train=[Dataset(prefix="none")]),
        training=Training(output="none", global_batch=8, micro_batch=2, compile=compiled, recompute=recompute),
    )  # fmt: skip
    grid, raw = make_grid(), json.loads((REPOSITORY / TIGHT).read_text())
    raw["zero_optimization"] |= {"stage3_max_reuse_distance": 0}  # or forward's weights would wait for backward
    engine = Engine(recipe, VOCABULARY, engine_config(recipe, DeepSpeedChoice(3, False, False, raw), RANKS), grid, CPU)
    engine.initialise()
    kept = watch_weights(engine)
    tokens = np.random.default_rng(grid.data.rank).integers(0, VOCABULARY, (4, MODEL["context"] + 1)).astype(np.int32)
    with counted() as calls:
        outcomes = [engine.step(SimpleNamespace(tokens=tokens), 1e-3, measure=False).read() for _ in range(STEPS)]
    moved = Counter()
    for call in calls:
        moved[call.kind] += call.nbytes
    masters = [shard.master.norm().item() for shard in engine.shards.values() if shard.count]
    results = [(outcome.loss, outcome.grad_norm) for outcome in outcomes] + [tuple(masters)]
    block = next(module for module in engine.engine.module.modules() if isinstance(module, Block))
    versions = len(_debug_get_cache_entry_list(type(block).step.__code__))
    return Steps(results, moved, kept, dict(counters["frames"]), list(counters["graph_break"]), versions)


def watch_weights(engine: Engine) -> list[int]:
    """`Steps.kept`, to which every backward pass adds."""
    seen: list[StorageWeakRef] = []
    kept: list[int] = []
    backward = engine.engine.backward

    def watched(loss: torch.Tensor) -> None:
        assert seen
        kept.append(sum(not weight.expired() for weight in seen))
        seen.clear()
        backward(loss)

    engine.engine.backward = watched
    for block in (module for module in engine.engine.module.modules() if isinstance(module, Block)):

        def forward(h_BTD, window, block=block, usual=block.forward):
            seen.extend(StorageWeakRef(parameter.untyped_storage()) for parameter in block.parameters())
            return usual(h_BTD, window)

        block.forward = forward
    return kept


def eager_and_compiled(kind: str, recompute: str) -> tuple[Steps, Steps]:
    join_deepspeed(CPU)
    torch.compile = partial(torch.compile, backend="aot_eager")
    return steps(kind, False, recompute), steps(kind, True, recompute)


@pytest.mark.parametrize(("kind", "recompute"), [("ngpt", "none"), ("gpt", "full")])
def test_blocks_are_compiled_whole_while_zero3_gathers_and_lets_go(kind, recompute):
    for eager, compiled in on_ranks(RANKS, eager_and_compiled, kind, recompute, seconds=150):
        assert compiled.breaks == [] and compiled.blocks == 1
        assert compiled.frames["ok"] == compiled.frames["total"] > 1
        assert eager.frames == {} and eager.blocks == 0
        assert compiled.kept == eager.kept == [0] * (2 * STEPS)
        assert compiled.moved == eager.moved and eager.moved["all_gather"] > 0
        for ours, theirs in zip(compiled.results, eager.results, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
