"""Stage bounds: everything once, a block for each stage, and no partition that is better."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from megatron_ngpt.config.costs.stages import stage_bounds


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
