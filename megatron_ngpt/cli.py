"""The command `ngpt`. Each sub-command imports its room when it is called, so that `ngpt --help` and mistakes stay fast."""

import sys
from typing import Annotated

import typer

from megatron_ngpt.config.reference import help_text
from megatron_ngpt.errors import NgptError

app = typer.Typer(
    name="ngpt",
    help="Train, check, evaluate and export nGPT models. Pretraining itself starts with launch/pretrain.py.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
TAKES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.callback()
def _ngpt() -> None:
    """Keeps the sub-commands' names even while there is only one."""


@app.command(context_settings=TAKES_OVERRIDES, epilog="\b\n" + help_text().replace("\n\n", "\n\n\b\n"))
def check(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="the recipe")],
    ranks: Annotated[int, typer.Option(help="number of ranks the run will have")] = 1,
) -> None:
    """Check a recipe, its data and its layout on N ranks, as pretraining would, without starting anything.

    Prints one line: layout, parameters, memory a rank. Keys are set with --section.key=value.
    """
    from megatron_ngpt.training.preflight import preflight, summary

    print(summary(preflight(recipe, context.args, ranks)))


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    try:
        return app(prog_name="ngpt", standalone_mode=False) or 0
    except NgptError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "ngpt"
        print(f"{command}: {' '.join(error.format_message().split())} ({command} --help tells more)", file=sys.stderr)
        return error.exit_code
