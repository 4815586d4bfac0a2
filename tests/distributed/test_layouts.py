"""Every layout trains the same model: losses, gradient norms and final weights of 20 fp32 steps against one rank."""

import pytest

from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.data.tokenizer import Tokenizer
from tests.distributed.layouts import LAYOUTS, VARIANTS, WIRE, Layout, difference

pytestmark = pytest.mark.usefixtures("in_repository")
TOLERANCE = 1e-5
NORM_ERROR = 1e-6
ROUNDING = 2.0**-8  # of bf16, from one number to the next
SLOW = 6  # ranks under ZeRO-3, which take twice as long on two cores as any other row
ROWS = [pytest.param(layout, marks=[pytest.mark.heavy] * (layout.ranks == SLOW), id=layout.name) for layout in LAYOUTS]


@pytest.mark.parametrize("layout", ROWS)
def test_layout_equals_one_rank(layout, table):
    found = table.compare(layout)
    assert found.steps == 20
    assert found.clipped, "the clip must bind at every step, or a wrong gradient norm would not show"
    assert found.loss <= TOLERANCE
    assert found.grad_norm <= TOLERANCE
    assert found.weights <= TOLERANCE
    assert found.norm_error <= NORM_ERROR


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.heavy)])
def test_gradients_that_travel_in_bf16_are_rounded_and_no_more(stage, table):
    layout = Layout(f"wire, ZeRO-{stage}", 2, {"deepspeed": WIRE.format(stage)})
    found = difference(table.run(layout, layout.name), table.reference(layout.variant))
    assert found.loss <= TOLERANCE
    assert TOLERANCE < found.grad_norm <= ROUNDING
    assert found.norm_error <= NORM_ERROR


def test_three_data_ranks_cut_rows(corpus):
    """Or the rows with three ranks would show nothing about the reduction over cut rows."""
    model = load_recipe(str(corpus / "recipe.yaml"), []).model
    assert model.vocab is None and Tokenizer(corpus / "tokenizer.model").size % 3
    for rows in (model.heads * model.head_size, model.groups * model.head_size, model.ffn_size):
        assert rows % 3


def test_six_data_ranks_hold_a_row_of_the_narrow_ones_on_three(corpus):
    """A rank whose run of the flattened matrix starts and ends inside one row is the middle one of three."""
    options = [f"--{key}={value}" for key, value in VARIANTS["narrow keys and values"].items()]
    model = load_recipe(str(corpus / "recipe.yaml"), options).model
    rows, ranks = model.groups * model.head_size, 6
    run = -(-rows * model.hidden // ranks)
    assert any(start // model.hidden == (start + run) // model.hidden and start % model.hidden for start in range(0, run * ranks, run))
