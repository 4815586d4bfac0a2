"""JSON of others: every complaint is a ValueError, and the same one however much of the stack is in use."""

import sys
import threading

import pytest

from megatron_ngpt.foreign import read_json, what_is_wrong

DEEP = {depth: "[" * depth + "]" * depth for depth in (200, 1_000, 100_000)}


@pytest.fixture(autouse=True)
def as_deep_as_python_has_it():
    """torch's compiler lifts the limit of the process in which it has compiled, and another test may have."""
    lifted = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)
    yield
    sys.setrecursionlimit(lifted)


@pytest.mark.parametrize(("text", "said"), [
    (DEEP[1_000], "nested too deeply"),
    ('{"a":' * 1_000 + "1" + "}" * 1_000, "nested too deeply"),
    (DEEP[100_000], "nested too deeply"),
    ("[" * 100_000, "nested too deeply"),
    ("{", "not JSON: Expecting property name"),
    (b'"\xff"', "invalid UTF-8 at byte 2"),
    (b'\xef\xbb\xbf"x"', "not JSON: Unexpected UTF-8 BOM"),
])
def test_whatever_is_wrong_is_a_value_error(text, said):
    with pytest.raises(ValueError) as error:
        read_json(text)
    assert what_is_wrong(error.value).startswith(said)


@pytest.mark.parametrize(("text", "value"), [("9" * 5_000, float("inf")), ("-" + "1" * 100_000, -float("inf")), ("0.5", 0.5)])
def test_an_integer_of_any_length_is_a_value(text, value):
    found = read_json(f'{{"id": {text}, "n": 3}}')
    assert found == {"id": value, "n": 3} and type(found["n"]) is int
    assert read_json(f'[{text}, "x"]')[1] == "x"


def read_below(frames, text):
    return read_json(text) if frames == 0 else read_below(frames - 1, text)


def test_the_verdict_does_not_depend_on_the_stack_in_use():
    def readable(depth, frames):
        try:
            read_below(frames, "[" * depth + "]" * depth)
        except ValueError:
            return False
        return True

    verdicts = {frames: [readable(depth, frames) for depth in range(500, 1_100, 7)] for frames in (0, 300)}
    thread = threading.Thread(target=lambda: verdicts.update(thread=[readable(depth, 0) for depth in range(500, 1_100, 7)]))
    thread.start()
    thread.join()
    assert verdicts[0] == verdicts[300] == verdicts["thread"] and True in verdicts[0] and False in verdicts[0]
