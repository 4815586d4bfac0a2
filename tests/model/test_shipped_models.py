"""Every shipped recipe's model, built without memory, has exactly the parameters that the project states."""

from pathlib import Path

import pytest
import torch

from megatron_ngpt.config.costs.work import parameters
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder

RECIPES = Path(__file__).parents[2] / "launch" / "recipes"
COUNTS = {
    "gpt-0.5b": 468_239_360,
    "gpt-1b": 1_025_731_840,
    "ngpt-0.5b": 468_491_520,
    "ngpt-1b": 1_026_177_280,
    "ngpt-7b": 6_739_279_104,
    "quickstart": None,  # its vocabulary is its tokenizer's
}


def test_the_table_is_complete():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_a_shipped_model_has_its_parameters(name):
    model = load_recipe(str(RECIPES / f"{name}.yaml")).model
    vocabulary = model.vocab or 32_000
    with torch.device("meta"):
        module = Decoder(Blueprint(model, vocabulary))
    found = sum(parameter.numel() for parameter in module.parameters())
    assert all(parameter.is_meta for parameter in module.parameters())
    assert found == parameters(model, vocabulary)
    assert COUNTS[name] in (None, found)
