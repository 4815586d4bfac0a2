"""Every shipped recipe loads, fits its number of ranks, and has the parameters that the project states."""

from pathlib import Path

import pytest

from megatron_ngpt.config.costs.memory import memory
from megatron_ngpt.config.costs.work import parameters
from megatron_ngpt.config.deepspeed_json import read_deepspeed
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.config.rules import problems

ROOT = Path(__file__).parents[2]
RECIPES = {                                           # ranks, parameters (None: the vocabulary is the tokenizer's)
    "quickstart": (2, None),
    "ngpt-0.5b": (8, 468_491_520),
    "gpt-0.5b": (8, 468_239_360),
    "ngpt-1b": (8, 1_026_177_280),
    "gpt-1b": (8, 1_025_731_840),
    "ngpt-7b": (32, 6_739_279_104),
}


def test_the_table_is_complete():
    assert {path.stem for path in (ROOT / "launch" / "recipes").glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_fits(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    ranks, count = RECIPES[name]
    recipe = load_recipe(f"launch/recipes/{name}.yaml")
    choice = read_deepspeed(recipe.deepspeed)
    assert problems(recipe, choice, ranks) == []
    assert recipe.model.arch == name.split("-")[0].replace("quickstart", "ngpt")
    if count is not None:
        assert recipe.model.vocab == 32_000 and parameters(recipe.model, 32_000) == count
        assert memory(recipe, choice, 32_000, ranks).device < 70 * 2**30


@pytest.mark.parametrize("name", ["ngpt-0.5b", "ngpt-1b", "gpt-0.5b", "gpt-1b"])
def test_the_papers_training(name):
    recipe = load_recipe(str(ROOT / "launch" / "recipes" / f"{name}.yaml"))
    assert (recipe.optimizer.lr, recipe.model.context, recipe.training.global_batch) == (15e-4, 1024, 512)
    assert recipe.optimizer.betas == [0.9, 0.95] and recipe.optimizer.clip == 1.0 and recipe.schedule.min_lr == 0
    decays, warms = recipe.optimizer.weight_decay, recipe.schedule.warmup_steps
    assert (decays, warms) == (0.0, 0) if recipe.model.arch == "ngpt" else (decays == 0.1 and warms > 0)
