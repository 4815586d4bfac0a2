"""Compiled blocks train the same model: alone, with a layout's collectives, between ZeRO-3's gathers. Heavy: every rank compiles."""

import pytest

from tests.distributed.layouts import TIGHT, Layout, cut, difference, spread, zero

pytestmark = [pytest.mark.usefixtures("in_repository"), pytest.mark.heavy, pytest.mark.timeout(900)]
COMPILED = {"training.compile": "true"}


@pytest.mark.parametrize(
    "layout",
    [
        Layout("data 2, ZeRO-1", 2, zero(1) | COMPILED),
        Layout("tensor 2, sequence, recompute", 2, cut(2, sequence=True) | COMPILED | {"training.recompute": "full"}),
        Layout("pipeline 2, masked blend", 2, cut(pipeline=2) | COMPILED, "blend, masked documents"),
        Layout("gpt, tensor 2", 2, cut(2) | COMPILED, "gpt"),
        Layout("tensor 2, selective, chunks", 2, cut(2) | COMPILED | {"training.recompute": "selective", "training.ffn_chunks": "4"}),
        Layout("data 3, ZeRO-3, all cut, recompute, masked blend", 3, {"deepspeed": TIGHT} | COMPILED | {"training.recompute": "full"},
               "blend, masked documents"),
        Layout("tensor 2 × data 2, sequence, ZeRO-3, offload", 4, cut(2, sequence=True) | zero(3, offload=True) | COMPILED),
        Layout("context 2, ring, recompute", 2, spread("ring", 2) | COMPILED | {"training.recompute": "full"}),
        Layout("context 2, ring, masked blend", 2, spread("ring", 2) | COMPILED, "blend, masked documents"),
    ],
    ids=lambda layout: layout.name,
)
def test_compiled_layout_equals_one_eager_rank(layout, table):
    found = difference(table.run(layout, f"compiled {layout.name}", seconds=800), table.reference(layout.variant))
    assert found.steps == 20
    assert found.loss <= 1e-5
    assert found.grad_norm <= 1e-5
    assert found.weights <= 1e-5
    assert found.norm_error <= 1e-6
