"""Engines of every layout family on ranks of one start: updates that are vetoed, and what a step waits for."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
import torch.distributed as dist

from megatron_ngpt.config.deepspeed_json import engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Data, Dataset, Model, Optimizer, Parallel, Recipe, Training
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.parallel.shards import stepped_buffers
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.update import StepResult
from tests.distributed.corpus import REPOSITORY
from tests.model.small import SHAPE, VOCABULARY, tokens

LR, CLIP, MICRO_BATCHES = 1e-2, 0.05, 2
TIGHT = "tests/distributed/zero3-tight.json"

# By ranks: the recipe's section parallel (and embedding_shard, optimizer keys), and DeepSpeed's file.
PLAIN = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "bf16-zero1", "bf16-zero2", "bf16-zero3")
FAMILIES: dict[int, dict[str, dict]] = {
    2: {
        **{f"data 2, {json}": {"json": f"ds_configs/{json}.json"} for json in PLAIN},
        "data 2, zero2, decay and tangent": {"json": "ds_configs/zero2.json", "weight_decay": 0.1, "tangent": True},
        "tensor 2": {"tensor": 2},
        "pipeline 2": {"pipeline": 2},
        "pipeline 2, bf16-zero1": {"pipeline": 2, "json": "ds_configs/bf16-zero1.json"},
    },
    3: {"data 3, ZeRO-3, all cut": {"json": TIGHT, "weight_decay": 0.1, "tangent": True}},
    4: {
        "tensor 2 × data 2, hidden-sharded, ZeRO-3, all cut": {"tensor": 2, "json": TIGHT, "embedding_shard": "hidden"},
        "tensor 2 × data 2, zero2-offload": {"tensor": 2, "json": "ds_configs/zero2-offload.json"},
        "pipeline 2 × tensor 2": {"tensor": 2, "pipeline": 2},
        "pipeline 2 × data 2, bf16-zero1": {"pipeline": 2, "json": "ds_configs/bf16-zero1.json"},
    },
    8: {
        "2 × 2 × 2, zero0": {"tensor": 2, "pipeline": 2},
        "2 × 2 × 2, zero1": {"tensor": 2, "pipeline": 2, "json": "ds_configs/zero1.json"},
        "2 × 2 × 2, bf16-zero1": {"tensor": 2, "pipeline": 2, "json": "ds_configs/bf16-zero1.json"},
    },
}
LIGHT = {2: ["data 2, zero0", "data 2, zero2", "data 2, zero3", "data 2, zero3-offload", "data 2, bf16-zero1", "data 2, bf16-zero2",
             "tensor 2", "pipeline 2"]}  # fmt: skip


def build(keys: dict) -> Engine:
    """An engine of the layout on this rank, at step 0 of one seed."""
    join_deepspeed(torch.device("cpu"))
    tensor, pipeline = keys.get("tensor", 1), keys.get("pipeline", 1)
    data = dist.get_world_size() // (tensor * pipeline)
    recipe = Recipe(
        model=Model(**SHAPE, **{"embedding_shard": keys.get("embedding_shard", "vocab")}),
        parallel=Parallel(tensor=tensor, pipeline=pipeline),
        data=Data(tokenizer="none", train=[Dataset(prefix="none")]),
        deepspeed=str(REPOSITORY / keys.get("json", "ds_configs/zero0.json")),
        optimizer=Optimizer(lr=LR, clip=CLIP, weight_decay=keys.get("weight_decay", 0.0), tangent=keys.get("tangent", False)),
        training=Training(output="none", global_batch=MICRO_BATCHES * data, micro_batch=1),
    )
    grid = make_grid(tensor=tensor, pipeline=pipeline)
    choice = read_deepspeed(recipe.deepspeed)
    if choice.zero_stage == 3:
        choice.raw["zero_optimization"]["sub_group_size"] = 3000  # the base optimiser steps several in turn
    config = engine_config(recipe, choice, data)
    engine = Engine(recipe, VOCABULARY, config, grid, torch.device("cpu"))
    engine.initialise()
    return engine


def step(engine: Engine, number: int) -> StepResult:
    """The update of batch `number`; no two ranks, and no two numbers, have the same rows."""
    data = engine.grid.readers
    rows = tokens(MICRO_BATCHES * data.size, SHAPE["context"] + 1, seed=number)
    own = rows[MICRO_BATCHES * data.rank : MICRO_BATCHES * (data.rank + 1)].int().numpy()
    return engine.step(SimpleNamespace(tokens=own), LR, measure=True).read()


@contextmanager
def infinite_gradient(engine: Engine, rank: int) -> Iterator[None]:
    """One number of one gradient is infinite, in the first micro-batch, on one rank."""
    seen = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        if not seen and dist.get_rank() == rank:
            gradient = gradient.clone()
            gradient.view(-1)[3] = torch.inf
        seen.append(True)
        return gradient

    spoiled = next(p for p in engine.engine.module.parameters() if p.placement.record.name.endswith("mlp.up_proj.weight"))
    hook = spoiled.register_hook(spoil)
    yield
    hook.remove()


@contextmanager
def finite_but_refused(engine: Engine) -> Iterator[None]:
    """Too far above its history, as it would be after smaller norms: nothing is wrong with the numbers, and DeepSpeed sees nothing."""
    before, engine.history.judge = engine.history.judge, lambda loss, norm: norm > 0
    yield
    engine.history.judge = before


def state(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of all that an update moves on this rank: buffers whole, with their padding, their moments and step counts."""
    buffers = stepped_buffers(engine.optimizer) or list(engine.engine.module.parameters())
    found = {}
    for number, buffer in enumerate(buffers):
        found[f"weights {number}"] = buffer.detach().clone()
        held = engine.base.state.get(buffer, {})
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{key} {number}"] = held[key].clone() if key in held else torch.zeros_like(buffer).detach()
        found[f"step {number}"] = torch.as_tensor(held.get("step", 0.0)).clone()
    for number, parameter in enumerate(engine.engine.module.parameters()):
        found[f"published {number}"] = getattr(parameter, "ds_tensor", parameter).detach().clone()
    return found


def parameters(engine: Engine) -> dict[str, torch.Tensor]:
    """The same by parameter, without DeepSpeed's padding, which it leaves as memory comes."""
    found = {}
    for name, shard in engine.shards.items():
        if shard.count:
            found |= {f"{name} {key}": shard.moment(engine.base, key) for key in ("exp_avg", "exp_avg_sq")}
            found |= {f"{name} weights": shard.master, f"{name} step": engine.base.state[shard.buffer]["step"]}
    return found


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """What is not the same bit for bit."""
    bits = {2: torch.int16, 4: torch.int32}
    return [key for key in a if not torch.equal(*(x[key].view(bits[x[key].element_size()]) for x in (a, b)))]


def check_vetoes(names: list[str]) -> None:
    """In each layout: batches 1, 2 (bad), 3, 4 (refused), 5, against 1, 3, 5; and a bad first one."""
    for name in names:
        keys = next(family[name] for family in FAMILIES.values() if name in family)
        try:
            _check_vetoes(keys)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def _check_vetoes(keys: dict) -> None:
    skipped = build(keys)
    wanted = [step(skipped, number) for number in (1, 3, 5)]
    assert not any(result.vetoed for result in wanted)
    assert all(result.grad_norm > CLIP for result in wanted)
    engine, found = build(keys), []
    last = dist.get_world_size() - 1
    _check_veto(engine, infinite_gradient(engine, rank=0), 6)
    for number in (1, 3, 5):
        found.append(step(engine, number))
        if number == 1:
            _check_veto(engine, infinite_gradient(engine, rank=last), 2)
        elif number == 3:
            _check_veto(engine, finite_but_refused(engine), 4)
    assert found == wanted, f"{found} instead of {wanted}"
    apart = differing(parameters(engine), parameters(skipped))
    assert apart == [], f"{apart} are not as if the vetoed batches had never been"
    assert all(result.norm_errors.after < 1e-6 for result in found)


def _check_veto(engine: Engine, spoiled, number: int) -> None:
    before = state(engine)
    with spoiled:
        result = step(engine, number)
    assert result.vetoed
    moved = differing(before, state(engine))
    assert moved == [], f"a vetoed update moved {moved}"
    assert engine.engine.skipped_steps == 0 and not getattr(engine.optimizer, "overflow", False)


class Waits:
    """Counts the calls by which a host reads a tensor (and so waits for its device), by whose code makes them."""

    NAMES = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self):
        self.counted: Counter[str] = Counter()

    def __enter__(self) -> Counter:
        self._originals = {name: getattr(torch.Tensor, name) for name in self.NAMES}
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, self._counting(original))
        return self.counted

    def __exit__(self, *_) -> None:
        for name, original in self._originals.items():
            setattr(torch.Tensor, name, original)

    def _counting(self, original):
        def counting(*arguments, **options):
            frame = sys._getframe(1)
            while frame and not any(owner in frame.f_code.co_filename for owner in ("/megatron_ngpt/", "/deepspeed/")):
                frame = frame.f_back
            whose = "ours" if frame and "/megatron_ngpt/" in frame.f_code.co_filename else "DeepSpeed's"
            self.counted[whose] += 1
            return original(*arguments, **options)

        return counting


def waits(names: list[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """By layout: (ours, DeepSpeed's) of a step that is not logged, and of one that is."""
    found = {}
    for name in names:
        engine = build(next(family[name] for family in FAMILIES.values() if name in family))
        step(engine, 1)
        rows = SimpleNamespace(tokens=tokens(MICRO_BATCHES, SHAPE["context"] + 1, seed=2).int().numpy())
        found[name] = {}
        for kind, measure in (("unlogged", False), ("logged", True)):
            with Waits() as counted:
                outcome = engine.step(rows, LR, measure)
                if measure:
                    outcome.read()
            found[name][kind] = (counted["ours"], counted["DeepSpeed's"])
    return found
