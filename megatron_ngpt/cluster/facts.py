"""What one host can tell by itself: versions, devices, memory, networks, and what the recipe's checks and files say here."""

import hashlib
import os
import platform
import socket
import subprocess
from pathlib import Path

import psutil

import megatron_ngpt
from megatron_ngpt.config.costs.memory import memory
from megatron_ngpt.config.load import dump_recipe, load_recipe
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.indexed import pair_paths
from megatron_ngpt.data.tape import find_prefixes
from megatron_ngpt.errors import DataError, NgptError
from megatron_ngpt.training.preflight import Ready, preflight, room
from megatron_ngpt.training.record import packages

WHOLE = 1 << 26  # bytes of a file that is compared whole
PIECES, PIECE = 64, 1 << 16  # of a larger one
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def gather(recipe_path: str, overrides: list[str], ranks: int) -> dict:
    """All of it, as JSON has it.

    Keys: versions {name: version}; devices, networks (see there); recipe: digest; problems: of the recipe's checks here; files {path:
    digest}; output; and, where the checks found nothing, needed: bytes a rank, room: {asked, free} bytes.
    """
    recipe = load_recipe(recipe_path, overrides)
    found = {
        "versions": versions(),
        "devices": devices(),
        "networks": networks(),
        "recipe": hashlib.sha256(dump_recipe(recipe).encode()).hexdigest(),
        "files": {str(path): digest(path) for path in files(recipe)},
        "output": str(Path(recipe.training.output).absolute()),
        "problems": [],
    }
    try:
        ready = preflight(recipe_path, overrides, ranks)
    except NgptError as error:
        return found | {"problems": str(error).splitlines()}
    return found | _needs(ready)


def versions() -> dict[str, str]:
    """Of all that must be the same on every host; `source` is a digest of this package's own modules."""
    found = {"python": platform.python_version(), "ngpt": megatron_ngpt.__version__, "source": _source(), **packages()}
    if _on_gpus():
        from megatron_ngpt.parallel.device import gpu_versions

        found |= gpu_versions()
    return found


def devices() -> dict:
    """kind: `cpu` or the GPU's name; count; free: bytes of each device, or of the host."""
    if not _on_gpus():
        return {"kind": "cpu", "count": os.cpu_count(), "free": [psutil.virtual_memory().available]}
    import torch

    count = torch.cuda.device_count()
    return {
        "kind": torch.cuda.get_device_name(0), "count": count, "free": [torch.cuda.mem_get_info(number)[0] for number in range(count)],
    }  # fmt: skip


def networks() -> dict:
    """addresses: as `hostname -I` lists them, of which the launcher takes the first; names: of the interfaces; own: the address that this
    host's own name leads to here; wanted: the interfaces that the environment asks for."""
    listed = subprocess.run(["hostname", "-I"], capture_output=True, text=True)
    try:
        own = socket.gethostbyname(socket.gethostname())
    except OSError:
        own = None
    return {
        "addresses": listed.stdout.split(),
        "names": [name for _, name in socket.if_nameindex()],
        "own": own,
        "wanted": {name: os.environ[name] for name in INTERFACES if name in os.environ},
    }


def files(recipe: Recipe) -> list[Path]:
    """Those that a run reads on every host: the tokenizer, and of each dataset its tokens and index; what is absent is left out."""
    found = [Path(recipe.data.tokenizer)]
    for entry in (*recipe.data.train, *recipe.data.valid):
        try:
            prefixes = find_prefixes(entry.prefix)
        except DataError:
            continue
        found += [path for prefix in prefixes for path in pair_paths(prefix)[:2]]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def digest(path: Path) -> str:
    """SHA-256 of the file's size and content; of a file above 64 MiB 64 pieces of 64 KiB, spread evenly, the last at its end."""
    size = path.stat().st_size
    hashed = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= WHOLE:
            hashed.update(file.read())
        else:
            for number in range(PIECES):
                file.seek((size - PIECE) * number // (PIECES - 1))
                hashed.update(file.read(PIECE))
    return hashed.hexdigest()


def _needs(ready: Ready) -> dict:
    found = room(ready)
    return {
        "needed": memory(ready.recipe, ready.deepspeed, ready.vocabulary, ready.ranks).device,
        "room": {"asked": found.asked, "free": found.free, "keep": ready.recipe.checkpoint.keep},
    }


def _source() -> str:
    root = Path(megatron_ngpt.__file__).parent
    hashed = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return hashed.hexdigest()[:12]


def _on_gpus() -> bool:
    """As `parallel.device` says; without importing torch where the environment does."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return False
    from megatron_ngpt.parallel.device import on_gpus

    return on_gpus()
