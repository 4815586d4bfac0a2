"""`ngpt checkpoint`: what a person asks of a run's checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_ngpt.console import Commands

checkpoint = typer.Typer(cls=Commands, help="Look at the checkpoints of a run, and prove that they are whole.", rich_markup_mode=None)
CHECKPOINTS = typer.Argument(metavar="DIR", help="a run directory or one of its checkpoints")


@checkpoint.callback(invoke_without_command=True)
def _checkpoint(context: typer.Context) -> None:
    """Look at the checkpoints of a run, and prove that they are whole."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@checkpoint.command("list")
def list_checkpoints(directory: Annotated[Path, CHECKPOINTS]) -> None:
    """Print a table: step, tokens, time, size, the layout that wrote it, and whether every file is there."""
    from megatron_ngpt.checkpoint.report import list_checkpoints, print_table

    print_table(list_checkpoints(directory))


@checkpoint.command("verify")
def verify_checkpoints(directory: Annotated[Path, CHECKPOINTS]) -> None:
    """Read every byte and compare it with the checksums that were written; exit status 1 and a line for each damaged file."""
    from megatron_ngpt.checkpoint.report import verify_checkpoints

    print("\n".join(verify_checkpoints(directory)))
