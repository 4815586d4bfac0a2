"""Every layout trains the same model: losses, gradient norms and final weights of 20 fp32 steps against one rank."""

import pytest

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
