"""The rooms that CONTRIBUTING names, in its order: each imports only from those above it, and no two modules import each other.

Imports inside functions count too.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = "megatron_ngpt/checkpoint/hub/remote/"  # goes into exports, where this project is not


def rooms() -> dict[str, int]:
    """Path of each room, a file or a directory with its slash, to the line of CONTRIBUTING's list that has it."""
    found = {}
    tour = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n## ")[1]
    for line, row in enumerate(re.findall(r"^\| (`.*?) \|", tour, re.MULTILINE), 1):
        folder = ""
        for name in re.findall(r"`(\S+?)`", row):
            folder = folder or (name.split("/")[0] + "/" if name.startswith("megatron_ngpt/") else "")
            found[name if name.startswith(folder) else folder + name] = line
    return found


ROOMS = rooms()
MODULES = {
    path.relative_to(ROOT).as_posix(): path
    for top in {room.split("/")[0] for room in ROOMS} for path in sorted((ROOT / top).rglob("*.py"))
    if COPIED not in path.as_posix()
}


def line_of(module: str) -> int | None:
    """The line of the room that a module is in; None for a package's own `__init__` and `__main__` beside the rooms."""
    return next((line for room, line in ROOMS.items() if module == room or (room.endswith("/") and module.startswith(room))), None)


def imported(module: str) -> set[str]:
    """The project's modules that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        for name in names:
            path = name.replace(".", "/")
            found |= {path + end for end in (".py", "/__init__.py") if path + end in MODULES}
    return found - {module}


def test_the_list_names_every_room():
    unnamed = {m for m in MODULES if line_of(m) is None} - {"megatron_ngpt/__init__.py", "megatron_ngpt/__main__.py"}
    assert not unnamed and all((ROOT / room).exists() for room in ROOMS)


@pytest.mark.parametrize("module", [m for m in MODULES if line_of(m) is not None and not m.startswith("tests/")])
def test_a_module_imports_from_its_own_room_and_those_above(module):
    below = [other for other in imported(module) if (line_of(other) or 0) > line_of(module)]
    assert not below, f"{module} imports {below}"


def test_no_modules_import_each_other_in_a_circle():
    edges = {module: imported(module) for module in MODULES}
    while leaves := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in leaves:
            del edges[module]
    assert not edges, f"in a circle, or on the way to one: {sorted(edges)}"
