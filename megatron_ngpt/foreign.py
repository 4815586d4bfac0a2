"""JSON and text that others wrote: whatever is wrong with it is a ValueError, and the same one everywhere."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def read_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads` of a str or of UTF-8 bytes, whose every complaint is a ValueError that says what is wrong.

    An integer of more digits than Python takes is a float, as it is to other readers. What is nested deeper than Python's stack is
    refused; as that depends on how much of the stack is in use, a line that fails is tried again on an empty one, so that the verdict
    is the same wherever it is read.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        return _loads(text, options)
    except RecursionError:
        with ThreadPoolExecutor(1) as empty_stack:
            return empty_stack.submit(_loads_or_tell, text, options).result()


def _loads(text: str, options: dict) -> Any:
    try:
        return json.loads(text, **options)
    except json.JSONDecodeError:
        raise
    except ValueError:  # more digits than Python turns into an int
        return json.loads(text, parse_int=_number, **options)


def _number(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _loads_or_tell(text: str, options: dict) -> Any:
    try:
        return _loads(text, options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def what_is_wrong(error: ValueError) -> str:
    """What a ValueError of `read_json`, or of text that is turned to UTF-8 or back, says to a person."""
    if isinstance(error, UnicodeDecodeError):
        return f"invalid UTF-8 at byte {error.start + 1}"
    if isinstance(error, UnicodeEncodeError):
        return f"half of a surrogate pair (\\u{ord(error.object[error.start]):04x}), which is no text"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    return str(error)
