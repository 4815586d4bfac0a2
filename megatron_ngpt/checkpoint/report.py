"""`ngpt checkpoint list` and `verify`: what a run directory's checkpoints are, and whether every byte is as it was written."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_ngpt.checkpoint.catalogue import NOT_FINITE, Catalogue
from megatron_ngpt.checkpoint.files import PARTIAL
from megatron_ngpt.checkpoint.seal import CHECKSUMS, STATE, read_state, verify
from megatron_ngpt.errors import CheckpointError, ConfigError, DamagedError
from megatron_ngpt.monitor.progress import byte_progress

WIDTH = 400  # columns that a table may take in a file


def list_checkpoints(directory: Path) -> Table:
    """A table of the checkpoints at `directory` (a run directory or a checkpoint): step, time, size, layout, and whether it is complete.

    Raises:
        ConfigError: there is none.
    """
    table = Table("checkpoint", "step", "tokens", "saved", "size", "written by", "state", box=None, pad_edge=False)
    latest = _catalogue(directory).latest()
    for path in _checkpoints(directory):
        try:
            table.add_row(path.name, *_cells(read_state(path)), "complete, latest" if path.name == latest else "complete")
        except CheckpointError as error:
            table.add_row(path.name, "", "", "", "", "", str(error))
        except (LookupError, TypeError, ValueError) as error:
            table.add_row(path.name, "", "", "", "", "", f"damaged: {STATE} says what no run does: {error!r}")
    for path in _leftovers(directory):
        table.add_row(path.name, "", "", "", "", "", _aside(path))
    return table


def verify_checkpoints(directory: Path) -> list[str]:
    """Read every byte of the checkpoints at `directory`, with a progress bar; a line for each that is whole.

    Raises:
        ConfigError: there is none.
        DamagedError: with a line for every damaged file.
    """
    from megatron_ngpt.checkpoint.storage import finite_only  # imports torch

    good, problems = [], []
    paths = _checkpoints(directory)
    with byte_progress(transient=True) as progress:
        for path in paths:
            size = sum(file.stat().st_size for file in path.iterdir())
            task = progress.add_task(path.name, total=size)
            found = verify(path, lambda count, task=task: progress.advance(task, count), finite_only(path))
            problems += found
            good += [] if found else [f"{path}: good, {size / 1e6:,.1f} MB"]
    if problems:
        told = "\n".join([*good, *problems])
        raise DamagedError(f"{told}\n{len(paths) - len(good)} of {len(paths)} checkpoints damaged")
    return good


def print_table(table: Table) -> None:
    """On the terminal, or wide enough for every cell."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def _catalogue(directory: Path) -> Catalogue:
    return Catalogue(directory if (directory / "checkpoints").is_dir() else directory.absolute().parent.parent)


def _checkpoints(directory: Path) -> list[Path]:
    if (directory / "checkpoints").is_dir():
        paths = Catalogue(directory).named()
    else:
        paths = [directory] if any((directory / name).is_file() for name in (STATE, CHECKSUMS)) else []
    if not paths:
        raise ConfigError(f"DIR: {directory} holds no checkpoint; valid is a run directory that has saved, or a checkpoint itself")
    return paths


def _leftovers(directory: Path) -> list[Path]:
    """Unfinished, damaged and not finite directories of a run."""
    catalogue = Catalogue(directory)
    return sorted(catalogue.directory.glob(f"step-*{PARTIAL}")) + catalogue.set_aside() + catalogue.not_finite()


def _aside(path: Path) -> str:
    """Why a directory has no checkpoint's name."""
    if path.name.endswith(PARTIAL):
        return "unfinished"
    return "kept aside: it holds values that are not finite" if path.name.endswith(NOT_FINITE) else "put aside as damaged"


def _cells(state: dict) -> tuple[str, str, str, str, str]:
    """Step, tokens, time, size and layout of a checkpoint."""
    size = sum(entry["bytes"] for entry in state["files"].values())
    return str(state["step"]), f"{state['tokens']:,}", str(state["saved"]), f"{size / 1e6:,.1f} MB", _layout(state)


def _layout(state: dict) -> str:
    """tensor × pipeline, and the DeepSpeed file, of the run that wrote a checkpoint."""
    parallel = state["recipe"]["parallel"]
    return f"tensor {parallel['tensor']} × pipeline {parallel['pipeline']}, {Path(state['recipe']['deepspeed']).stem}"
