"""Stage bounds: everything once, a block for each stage, and no partition that is better."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.pipeline import head_cost, stage_bounds


def dearest(sizes: list[int], head: float) -> float:
    """The cost of the dearest stage; the last one has the head."""
    return max([*sizes[:-1], sizes[-1] + head])


def block_counts(bounds: list[int], layers: int) -> list[int]:
    """Blocks (layers 1 to `layers` of the list) in each stage."""
    return [len(set(range(a, b)) & set(range(1, layers + 1))) for a, b in pairwise(bounds)]


@st.composite
def shapes(draw):
    stages = draw(st.integers(1, 5))
    return draw(st.integers(stages, 11)), stages, draw(st.one_of(st.just(0.0), st.floats(0, 12)))


@given(shapes())
def test_covers_everything_and_is_never_worse_than_another(shape):
    layers, stages, head = shape
    bounds = stage_bounds(layers, stages, head)
    assert len(bounds) == stages + 1 and bounds[0] == 0 and bounds[-1] == layers + 2
    sizes = block_counts(bounds, layers)
    assert min(sizes) >= 1 and sum(sizes) == layers
    every = (
        [b - a for a, b in pairwise((0, *cuts, layers))] for cuts in combinations(range(1, layers), stages - 1)
    )
    assert dearest(sizes, head) <= min(dearest(other, head) for other in every) + 1e-9


def test_a_dear_head_leaves_its_stage_one_block():
    assert stage_bounds(7, 3, 100.0) == [0, 4, 7, 9]
    assert stage_bounds(4, 4, 0.0) == [0, 2, 3, 4, 6]


def test_the_heads_cost_counts_matrix_products():
    model = Model(hidden=8, heads=4, kv_heads=2, ffn=12, context=16)
    entries = 8 * 8 + 2 * (8 * 4) + 8 * 8 + 3 * 8 * 12  # of q, k and v, o, and the feed-forward's three
    scores = 2 * 8 * 16 / 2  # q kᵀ and the sum over v, half of them masked, a token
    assert head_cost(model, 100) == pytest.approx(100 * 8 / (entries + scores))
