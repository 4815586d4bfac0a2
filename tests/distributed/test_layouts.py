"""Every layout trains the same model: losses, gradient norms and final weights of 20 fp32 steps against one rank."""

import pytest

from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.tokenizer import Tokenizer
from tests.distributed.layouts import LAYOUTS

pytestmark = pytest.mark.usefixtures("in_repository")
TOLERANCE = 1e-5
NORM_ERROR = 1e-6


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_layout_equals_one_rank(layout, table):
    found = table.compare(layout)
    assert found.steps == 20
    assert found.clipped, "the clip must bind at every step, or a wrong gradient norm would not show"
    assert found.loss <= TOLERANCE
    assert found.grad_norm <= TOLERANCE
    assert found.weights <= TOLERANCE
    assert found.norm_error <= NORM_ERROR


def test_three_data_ranks_cut_rows(corpus):
    """Or the rows with three ranks would show nothing about the reduction over cut rows."""
    model = load_recipe(str(corpus / "recipe.yaml"), []).model
    assert model.vocab is None and Tokenizer(corpus / "tokenizer.model").size % 3
    for rows in (model.heads * model.head_size, model.groups * model.head_size, model.ffn_size):
        assert rows % 3
