"""Every key of a recipe with its type, default and meaning: the help text, and the tables of docs/recipes.md.

`python -m megatron_ngpt.config.reference` prints the tables.
"""

import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from megatron_ngpt.config.mistakes import section_of
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.console import show_anything


@dataclass(frozen=True)
class Key:
    """One key: dotted name, type in words, default as YAML writes it (`required` where there is none), meaning."""

    name: str
    kind: str
    default: str
    meaning: str


def sections() -> dict[str, tuple[str, list[Key]]]:
    """(what the section is for, its keys) by section, in the recipe's order; keys outside sections come last, under ``."""
    found: dict[str, tuple[str, list[Key]]] = {}
    alone = []
    for name, info in Recipe.model_fields.items():
        section = section_of(info.annotation)
        if section:
            found[name] = (_first_line(section), list(_keys(section, f"{name}.")))
        else:
            alone.append(_key(name, info))
    found[""] = ("Outside the sections.", alone)
    return found


def help_text() -> str:
    """All keys for a terminal, grouped by section."""
    lines = ["Keys of a recipe (a YAML file); each can be set on the command line with --section.key=value:"]
    for name, (purpose, keys) in sections().items():
        lines += ["", f"{name}: {purpose}" if name else purpose]
        for key in keys:
            lines.append(f"  {key.name} ({key.kind}; {key.default})")
            lines += textwrap.wrap(key.meaning, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def markdown() -> str:
    """All keys as Markdown, a table a section."""
    lines = []
    head = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, (purpose, keys) in sections().items():
        lines += [f"### {name or 'deepspeed'}", "", purpose, "", *head]
        cells = [(f"`{key.name}`", key.kind, f"`{key.default}`", key.meaning) for key in keys]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        lines.append("")
    return "\n".join(lines)


def _keys(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, info in section.model_fields.items():
        below = section_of(info.annotation)
        if below is None:
            yield _key(prefix + name, info)
        elif get_origin(info.annotation) is list:
            default = "required" if info.is_required() else "[]"
            yield Key(prefix + name, "list", default, info.description)
            yield from _keys(below, f"{prefix}{name}.N.")
        else:
            yield from _keys(below, f"{prefix}{name}.")


def _key(name: str, info: Any) -> Key:
    default = "required" if info.default is PydanticUndefined else _yaml(info.default)
    return Key(name, _kind(info.annotation), default, info.description)


def _kind(annotation: Any) -> str:
    """A type in words: `whole number`, `number`, `true or false`, `text`, the choices, or a list of these."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(get_args(annotation))
    if get_origin(annotation) is types.UnionType or type(None) in get_args(annotation):
        return " or ".join("null" if part is type(None) else _kind(part) for part in get_args(annotation))
    if get_origin(annotation) is list:
        return f"list of {_kind(get_args(annotation)[0])}s"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    show_anything()
    print(markdown())
