"""AdamW as in the paper: what the recipe says of it is what moves the weights, whatever DeepSpeed wraps around it."""

from types import SimpleNamespace

import pytest
import torch

from megatron_ngpt.config.deepspeed_json import engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Data, Dataset, Model, Optimizer, Recipe, Training
from megatron_ngpt.parallel.device import join_deepspeed
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.optimizer import base_optimizer
from tests.distributed.corpus import REPOSITORY
from tests.model.small import SHAPE, VOCABULARY, blueprint, tokens, trained
from tests.on_ranks import on_ranks

LR = 1e-2


def test_the_default_is_the_papers():
    """The layout table trains with a larger eps (tests/distributed/corpus.py); whoever writes a recipe does not."""
    default = Optimizer()
    assert (default.betas, default.eps, default.weight_decay) == ([0.9, 0.95], 1e-8, 0.0)


@pytest.mark.parametrize("eps", [1e-8, 1e-6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_adamws_in_float64(eps, weight_decay):
    """On gradients from far below eps, where it decides the step, to far above, where nothing but the sign is left."""
    module = trained(blueprint())
    optimizer = base_optimizer(Optimizer(lr=LR, eps=eps, weight_decay=weight_decay), module)
    before = {p: p.detach().double() for p in module.parameters()}
    moments = {p: (torch.zeros_like(w), torch.zeros_like(w)) for p, w in before.items()}
    generator = torch.Generator().manual_seed(0)
    for step in (1, 2):
        for p, w in before.items():
            sizes = 10 ** (-10 + 8 * torch.rand(p.shape, generator=generator))
            p.grad = sizes * torch.randn(p.shape, generator=generator)
            first, second = moments[p]
            first.mul_(0.9).add_(0.1 * p.grad.double())
            second.mul_(0.95).add_(0.05 * p.grad.double() ** 2)
            if p.placement.record.kind == "matrix":
                w.mul_(1 - LR * weight_decay)
            w.sub_(LR * first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + eps))
        optimizer.step()
    for p, w in before.items():
        assert (p - w).abs().max() < 1e-6, p.placement.record.name


JSONS = ("zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload", "bf16-zero1", "bf16-zero2", "bf16-zero3")


def farthest_steps(eps: float) -> dict[str, float]:
    """How far the entry that moves most of what this rank holds moves in a step, by DeepSpeed's file."""
    join_deepspeed(torch.device("cpu"))
    grid, found = make_grid(), {}
    for json in JSONS:
        recipe = Recipe(
            model=Model(**SHAPE), data=Data(tokenizer="none", train=[Dataset(prefix="none")]),
            deepspeed=str(REPOSITORY / f"ds_configs/{json}.json"), optimizer=Optimizer(lr=LR, eps=eps),
            training=Training(output="none", global_batch=2, micro_batch=1),
        )  # fmt: skip
        config = engine_config(recipe, read_deepspeed(recipe.deepspeed), grid.readers.size)
        engine = Engine(recipe, VOCABULARY, config, grid, torch.device("cpu"))
        engine.initialise()
        before = {name: shard.master.clone() for name, shard in engine.shards.items() if shard.count}
        engine.step(SimpleNamespace(tokens=tokens(1, SHAPE["context"] + 1).int().numpy()), LR, measure=False)
        found[json] = max((engine.shards[name].master - master).abs().max().item() for name, master in before.items())
    return found


@pytest.mark.parametrize(("eps", "least", "most"), [(1e-8, 0.5 * LR, 2 * LR), (1e3, 0, 1e-3 * LR)])
def test_eps_reaches_the_optimiser_in_every_wrapping(eps, least, most):
    """A step of full size at the paper's, next to none where eps is a thousand times the clipped gradient."""
    for found in on_ranks(2, farthest_steps, eps):
        assert found.keys() == set(JSONS)
        assert {json: moved for json, moved in found.items() if not least <= moved <= most} == {}
