"""How each rank's log of a start begins: who and where it is, what it runs, and what the recipe changes of the start before."""

import logging
import platform
import socket
from pathlib import Path

import torch

import megatron_ngpt
from megatron_ngpt.config.load import by_key
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.config.text import parse
from megatron_ngpt.errors import NgptError
from megatron_ngpt.parallel.device import gpu_versions
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.together import from_first_rank
from megatron_ngpt.training.record import packages

log = logging.getLogger(__name__)


def tell(grid: RankGrid, device: torch.device, recipe: Recipe) -> None:
    """Write it (collective): before the run directory gets the recipe of this start."""
    place = ", ".join(f"{axis} {at} of {grid.shape.size(axis)}" for axis, at in grid.shape.place(grid.world.rank).items())
    log.info("rank %d of %d on %s: %s; %s", grid.world.rank, grid.world.size, socket.gethostname(), place, _device(device))
    log.info(versions())
    changed = from_first_rank(lambda: differences(recipe), "the recipe of the start before could not be read")
    for line in changed:
        log.info("recipe: %s", line)


def versions() -> str:
    """Of what a rank runs, in a line."""
    found = [f"megatron_ngpt {megatron_ngpt.__version__}", *(f"{name} {number}" for name, number in packages().items())]
    found += [f"{name.upper()} {number}" for name, number in gpu_versions().items()]
    return ", ".join([f"Python {platform.python_version()}", *found])


def differences(recipe: Recipe) -> list[str]:
    """`section.key: old → new` of every key that is another than at the last start; a line says if that was the first, or has the same."""
    path = Path(recipe.training.output) / "recipe.yaml"
    if not path.is_file():
        return ["the first start"]
    try:
        before = by_key(parse(path.read_text("utf-8"), str(path)))
    except (OSError, ValueError, AttributeError, NgptError):
        return [f"{path} can't be read, and what is new is not known"]
    now = by_key(recipe.model_dump(mode="json"))
    keys = dict.fromkeys([*now, *before])
    return [f"{key}: {before.get(key)} → {now.get(key)}" for key in keys if before.get(key) != now.get(key)] or ["as at the last start"]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
