"""What is wrong with a recipe, said in one line a mistake: key, value, what would be valid."""

import difflib
import json
import re
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from megatron_ngpt.config.recipe import Recipe


def explain(mistake: Any) -> str:
    """One line for one of pydantic's errors: key, value, what would be valid, and what the key is for."""
    kind, location, bounds = mistake["type"], mistake["loc"], mistake.get("ctx", {})
    key, value = dotted(location), mistake["input"]
    if kind == "extra_forbidden":
        return f"{key} = {shown(value)}: unknown key; {_known_keys(location)}"
    purpose = _purpose(location)
    if kind == "missing":
        return f"{key}: missing{purpose}"
    return f"{key} = {shown(value)}: {_wanted(kind, bounds, mistake['msg'])}{purpose}"


def _wanted(kind: str, bounds: dict, message: str) -> str:
    """What would be valid, from the type of pydantic's error and the bounds it reports."""
    wanted = {
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "finite_number": "must be a finite number",
        "bool_type": "must be true or false",
        "string_type": "must be text (quote it if it looks like a number)",
        "list_type": "must be a list",
        "model_type": "must be a mapping of keys",
        "model_attributes_type": "must be a mapping of keys",
        "greater_than": "must be greater than {gt}",
        "greater_than_equal": "must be at least {ge}",
        "less_than": "must be less than {lt}",
        "less_than_equal": "must be at most {le}",
        "too_short": "must have at least {min_length} entries",
        "too_long": "must have at most {max_length} entries",
        "string_too_short": "must not be empty",
        "literal_error": "choose {expected}",
    }
    return wanted[kind].format(**bounds) if kind in wanted else message


def _known_keys(location: tuple) -> str:
    """The closest known keys to the unknown one at `location`, or all that would be valid there."""
    *above, name = location
    section = _at(above)
    known = list(section.model_fields) if section else []
    prefix = dotted(above) + "." if above else ""
    close = difflib.get_close_matches(str(name), known, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    elsewhere = [key for key in every_key() if key.split(".")[-1] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"choose from {', '.join(known)}"


def misspelt(argument: str) -> str:
    """What to type instead of a command-line argument that is no `--section.key=value`."""
    name, separator, value = re.fullmatch(r"-*([^=\s]*)([=\s]?)(.*)", argument, re.DOTALL).groups()
    name = name.replace("-", "_")
    key = name if takes(name) else _closest(name)
    if argument.startswith("-") and key:
        typed = f"--{key}={value if separator else 'VALUE'}"
        return f"write {typed}, with the = sign" if key == name else f"did you mean {typed}?"
    return "not an option; a key of the recipe is set with --section.key=value"


def _closest(name: str) -> str | None:
    """The key that is spelt nearly so, with or without its section."""
    keys = every_key()
    last = [key for key in keys if key.split(".")[-1] == name.split(".")[-1]]
    found = last[:1] or difflib.get_close_matches(name, keys, n=1) or [
        key for part in difflib.get_close_matches(name, [key.split(".")[-1] for key in keys], n=1)
        for key in keys if key.split(".")[-1] == part
    ]
    return found[0] if found else None


def takes(key: str) -> bool:
    """Whether a recipe has this dotted key (a number stands for a place in a list)."""
    return _annotation(key) is not None


def takes_text(key: str, nothing: bool = False) -> bool:
    """Whether the value of a dotted key is text, free or of a choice; with `nothing`: whether it may be null."""
    annotation = _annotation(key)
    kinds = {_plain(part) for part in (get_args(annotation) if type(None) in get_args(annotation) else [annotation])}
    return type(None) in kinds if nothing else kinds - {type(None)} == {str}


def _annotation(key: str) -> Any:
    """The type of a key's value; None where there is no such key."""
    *above, last = [name for name in key.split(".") if not name.isdigit()]
    section = _at(above)
    info = section.model_fields.get(last) if section else None
    return info.annotation if info and not key.split(".")[-1].isdigit() else None


def _plain(annotation: Any) -> Any:
    """A type without its bounds; a choice of texts is a text."""
    if get_origin(annotation) is Literal:
        return str
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def every_key() -> list[str]:
    """All keys of a recipe, dotted, in the order of the sections; `data.train.N.prefix` stands for each entry of a list."""

    def walk(section: type[BaseModel], prefix: str) -> list[str]:
        keys = []
        for name, info in section.model_fields.items():
            below = section_of(info.annotation)
            place = f"{prefix}{name}.N." if get_origin(info.annotation) is list else f"{prefix}{name}."
            keys += walk(below, place) if below else [prefix + name]
        return keys

    return walk(Recipe, "")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type holds, itself or as entries of a list; None for a plain value."""
    candidates = [annotation, *get_args(annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _at(location: list | tuple) -> type[BaseModel] | None:
    """The section at `location`; None where there is a plain value."""
    section: type[BaseModel] | None = Recipe
    for name in location:
        if isinstance(name, int):
            continue
        info = section.model_fields.get(name) if section else None
        section = section_of(info.annotation) if info else None
    return section


def _purpose(location: tuple) -> str:
    """The description of the key at `location` in brackets, or nothing."""
    names = [name for name in location if not isinstance(name, int)]
    section = _at(names[:-1])
    info = section.model_fields.get(names[-1]) if section and names else None
    return f" ({info.description})" if info and info.description else ""


def dotted(location: list | tuple) -> str:
    """The location of a key as it is written in an override: `data.train.0.prefix`."""
    return ".".join(str(part) for part in location)


def shown(value: Any) -> str:
    """A value as it would stand in YAML, on one line and not too long."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."
