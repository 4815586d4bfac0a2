"""Recipes and DeepSpeed's JSON that come with the package, each by its name; anything else is a path.

In a checkout they lie where people look for them, in `launch/recipes/` and `ds_configs/`; a wheel carries them inside the package.
"""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DEEPSPEED = ("ds_configs", "ds_configs", ".json")  # in the package, in a checkout, ending
RECIPES = ("recipes", "launch/recipes", ".yaml")


def located(given: str, kind: tuple[str, str, str]) -> str:
    """The path that a recipe's key or a command's argument means."""
    return str(_folder(kind) / f"{given}{kind[2]}") if given in names(kind) else given


def names(kind: tuple[str, str, str]) -> list[str]:
    """What there is of a kind, sorted."""
    return sorted(path.name.removesuffix(kind[2]) for path in _folder(kind).glob(f"*{kind[2]}"))


def hint(given: str, kind: tuple[str, str, str]) -> str:
    """For the end of a message about a file that is not there: the name that was perhaps meant, or those to choose from; or nothing."""
    stem = Path(given).name.removesuffix(kind[2])
    if stem in names(kind):
        return f"; {stem}, alone, names the one that comes with the package"
    return "" if "/" in given or given.endswith(kind[2]) else f"; give a path, or one of {', '.join(names(kind))}"


def _folder(kind: tuple[str, str, str]) -> Path:
    inside = PACKAGE / kind[0]
    return inside if inside.is_dir() else PACKAGE.parent / kind[1]
