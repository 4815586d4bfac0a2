"""Sealed states that do not say what a reader needs."""


import pytest

from megatron_ngpt.checkpoint.report import list_checkpoints
from megatron_ngpt.checkpoint.seal import read_state, seal
from megatron_ngpt.errors import DamagedError

RECIPE = {"parallel": {"tensor": 1, "pipeline": 1}, "deepspeed": "zero0"}
WHOLE = {"step": 1, "tokens": 10, "saved": "today", "recipe": RECIPE}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "complete"),
        ({"tokens": None}, "does not say its tokens"),
        ({"saved": None}, "does not say its saved"),
        ({"recipe": None}, "does not say its recipe"),
        ({"step": None}, "does not say its step"),
        ({"step": "one"}, "no whole number for its step"),
        ({"serial": []}, "no whole number for its step or serial"),
        ({"tokens": "many"}, "damaged: state.json says what no run does"),
        ({"recipe": {}}, "damaged: state.json says what no run does"),
    ],
)
def test_a_sealed_state_without_what_a_reader_needs_is_told_and_ends_no_table(tmp_path, changed, told):
    """None stands for a key that is not there."""
    path = tmp_path / "checkpoints" / "step-00000001"
    path.mkdir(parents=True)
    seal(path, {key: value for key, value in (WHOLE | changed).items() if value is not None}, [])
    [row] = list_checkpoints(tmp_path).columns[-1].cells
    assert told in row


def test_every_reader_of_a_state_names_what_it_does_not_say(tmp_path):
    seal(tmp_path, {"step": 1}, [])
    with pytest.raises(DamagedError, match=r"state\.json does not say its vocabulary"):
        read_state(tmp_path)["vocabulary"]
