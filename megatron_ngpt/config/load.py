"""From a recipe's file and the command line's overrides to a validated `Recipe`, with every problem told at once."""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megatron_ngpt.config import shipped, text
from megatron_ngpt.config.mistakes import dotted, explain, misspelt, section_of, shown, takes_text
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.errors import ConfigError

OVERRIDE = re.compile(r"--([A-Za-z_][\w]*(?:\.\w+)*)=(.*)", re.DOTALL)


@dataclass
class Reading:
    """What came of reading a recipe: `recipe` is None only if so much is wrong that no recipe can be made of it.

    With problems, `recipe` has defaults in place of the keys in `replaced`, so that further checks can still find more.
    """

    recipe: Recipe | None
    problems: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def load_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The recipe of the YAML file `path` with `--section.key=value` overrides applied.

    Raises ConfigError, one line a problem: the key, its value and what would be valid.
    """
    reading = read_recipe(path, overrides)
    if reading.problems:
        raise ConfigError(*reading.problems)
    return reading.recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key with its value; `load_recipe` reads it back unchanged."""
    return text.write(recipe.model_dump())


def by_key(recipe: dict) -> dict[str, object]:
    """The values of a recipe by their keys as an override has them, `model.rope_scaling.kind`."""
    found = {}
    for name, value in recipe.items():
        found |= {f"{name}.{key}": inner for key, inner in by_key(value).items()} if isinstance(value, dict) else {name: value}
    return found


def read_recipe(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Reading:
    """As `load_recipe`, but returns the problems instead of raising them, with what could be made of the rest."""
    try:
        tree = _sections(path)
    except ConfigError as error:
        return Reading(None, error.problems)
    problems = []
    for argument in with_their_values(overrides):
        try:
            tree = _override(tree, argument)
        except ConfigError as error:
            problems += error.problems
    try:
        return Reading(Recipe.model_validate(tree), problems)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        problems += [explain(mistake) for mistake in mistakes]
        replaced = [dotted(mistake["loc"]) for mistake in mistakes if mistake["type"] != "extra_forbidden"]
        return Reading(_salvage(tree, mistakes), problems, replaced)


def _sections(path: str) -> dict:
    """The file's sections as plain dicts; a section that is absent or has no keys is empty."""
    try:
        content = Path(shipped.located(path, shipped.RECIPES)).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8; a recipe is a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe: {error.strerror}{shipped.hint(path, shipped.RECIPES)}") from None
    tree = text.parse(content, path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {shown(tree)}; a recipe is a mapping of sections ({', '.join(Recipe.model_fields)})")
    empty = {name: {} for name, info in Recipe.model_fields.items() if section_of(info.annotation)}
    return empty | {key: value for key, value in tree.items() if value is not None or key not in empty}


def with_their_values(arguments: list[str] | tuple[str, ...]) -> list[str]:
    """Command-line arguments with `--key` and the word after it, its value without the equals sign, put together as `--key value`."""
    joined: list[str] = []
    for argument in arguments:
        if joined and _lacks_value(joined[-1]) and not argument.startswith("--") and not argument.endswith((".yaml", ".yml")):
            joined[-1] = f"{joined[-1]} {argument}"
        else:
            joined.append(argument)
    return joined


def _lacks_value(argument: str) -> bool:
    return argument.startswith("--") and "=" not in argument and " " not in argument


def _override(tree: dict, argument: str) -> dict:
    """The tree with the value of `--section.key=value` put in; a number in the key is a place in a list."""
    match = OVERRIDE.fullmatch(argument)
    if not match:
        raise ConfigError(f"{argument}: {misspelt(argument)}")
    key, word = match[1], match[2]
    value = _text(word, key) if takes_text(key) else text.parse(word, f"--{key}")
    *above, last = key.split(".")
    node: Any = (tree := copy.deepcopy(tree))
    for name, below in zip(above, key.split(".")[1:], strict=True):
        place = _place(node, name, key)
        absent = place == len(node) if isinstance(node, list) else node.get(place) is None
        if absent:
            _put(node, place, [] if below.isdigit() else {})
        node = node[place]
    _put(node, _place(node, last, key), value)
    return tree


def _text(word: str, key: str) -> str | None:
    """The word that the shell handed over, as it is; `null` stands for nothing where a key may have nothing."""
    return None if word == "null" and takes_text(key, nothing=True) else word


def _place(node: Any, name: str, key: str) -> str | int:
    """`name` as a key of the mapping `node`, or as a position in the list `node` (one past its end to append)."""
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise ConfigError(f"--{key}: {shown(node)} has no key {name!r}")
    if not node and name != "0":
        raise ConfigError(f"--{key}: the recipe has no list here yet; start with place 0, or give the whole list")
    if not name.isdigit() or int(name) > len(node):
        raise ConfigError(f"--{key}: {name!r} is no place in a list of {len(node)}; choose 0 to {len(node)}, the last appends")
    return int(name)


def _put(node: dict | list, place: str | int, value: Any) -> None:
    if isinstance(node, list) and place == len(node):
        node.append(value)
    else:
        node[place] = value


def _salvage(tree: dict, mistakes: list) -> Recipe | None:
    """The recipe without the keys that are wrong, or None where even that is none."""
    tree = copy.deepcopy(tree)
    for mistake in mistakes:
        *above, last = mistake["loc"]
        node: Any = tree
        for name in above:
            node = node[name]
        if mistake["type"] != "missing" and isinstance(node, dict):
            node.pop(last, None)
    try:
        return Recipe.model_validate(tree)
    except ValidationError:
        return None
