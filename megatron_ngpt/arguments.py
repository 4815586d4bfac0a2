"""What the arguments of all commands have in common: bounds, text that is text, and a mistake as one line."""

import math

import typer

from megatron_ngpt.errors import ConfigError

LARGEST_SEED = 2**64 - 1  # that torch's generators take
MOST_LENGTHS = 64
LARGEST_COUNT = 2**31 - 1  # of whatever is counted in an int32
MODEL = typer.Argument(metavar="MODEL", help="a run directory (its newest checkpoint), a checkpoint or an exported directory")
RECIPE = typer.Argument(metavar="RECIPE.yaml", help="a recipe's file, or the name of one that comes with the package")
TENSOR = typer.Option(min=1, max=LARGEST_COUNT, help="ranks that share every layer")
PIPELINE = typer.Option(min=1, max=LARGEST_COUNT, help="stages that the layers are divided over")


def finite(value: float | None) -> float | None:
    """The value of a number option; NaN and infinity, which pass comparisons with bounds, are a usage error."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def parse_lengths(text: str) -> list[int]:
    """`--lengths` as typed: rising lengths in tokens. Raises ConfigError for anything else."""
    words = text.split(",")
    lengths = [int(word) for word in words if word.strip().isdecimal() and int(word) <= LARGEST_COUNT]
    if len(lengths) != len(words) or lengths[0] < 1 or sorted(set(lengths)) != lengths or len(lengths) > MOST_LENGTHS:
        raise ConfigError(f"--lengths {text}: give lengths in tokens, each above the one before it, at most {MOST_LENGTHS}, "
                          "such as 1024,4096,16384")
    return lengths


def require_text(option: str, *values: str) -> None:
    """Raise ConfigError for an option whose value is not UTF-8: Python hands such bytes over as halves of surrogate pairs."""
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{option} {value!a}: not UTF-8 at character {error.start + 1}; give text") from None


def usage_line(error: typer.TyperException, program: str) -> str:
    """A usage error as one line that names the command and where its help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else program
    return f"{command}: {' '.join(error.format_message().split())} ({command} --help tells more)"
