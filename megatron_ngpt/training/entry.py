"""The front door of a pretraining run: arguments, this process's rank, the checks, then the run.

Until the checks are passed, nothing here imports torch or DeepSpeed: a mistake costs a moment, not a start of every rank.
"""

import os
import sys
import time
from dataclasses import dataclass, field

from megatron_ngpt.config.place import Place, read_place, variables
from megatron_ngpt.config.reference import help_text
from megatron_ngpt.errors import ConfigError, NgptError, RankError
from megatron_ngpt.training.preflight import preflight

USAGE = "usage: deepspeed [launcher options] launch/pretrain.py RECIPE.yaml [--section.key=value ...]"
HELP = f"""{USAGE}

Trains the model that a recipe describes. Also under torchrun and srun; for one rank, python launch/pretrain.py RECIPE.yaml.
Paths are resolved from the working directory. `ngpt check RECIPE.yaml --ranks N` checks a recipe without starting anything.
Exit status: 0 success, 1 failure at run time, 2 a mistake in the recipe or the options.

"""
WAIT_SECONDS = 2.0


@dataclass
class Arguments:
    """The command line, taken apart; `local_rank` is what a launcher added."""

    recipes: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    local_rank: int | None = None


def main(argv: list[str]) -> int:
    """Run `pretrain.py` with these arguments (without the program's name); returns the exit status."""
    if "--help" in argv or "-h" in argv:
        print(HELP + help_text())
        return 0
    place = Place()
    try:
        arguments = parse(argv)
        place = read_place(os.environ, arguments.local_rank)
        if len(arguments.recipes) != 1:
            raise ConfigError(_recipe_problem(arguments.recipes))
        ready = preflight(arguments.recipes[0], arguments.overrides, place.world)
        os.environ.update(variables(place, os.environ))
        from megatron_ngpt.training.run import run

        return run(ready)
    except ConfigError as error:
        return _refuse(error, place)
    except NgptError as error:
        if place.rank == 0 or isinstance(error, RankError):
            print(f"rank {place.rank}: {error}" if isinstance(error, RankError) else error, file=sys.stderr, flush=True)
        return error.exit_code


def parse(argv: list[str]) -> Arguments:
    """Sort the arguments. Raises ConfigError for a local rank that is no number; overrides are judged with the recipe."""
    arguments, rest = Arguments(), iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in ("--local_rank", "--local-rank"):
            value = value if equals else next(rest, "")
            if not value.isdigit():
                raise ConfigError(f"{name} = {value!r}: must be a whole number")
            arguments.local_rank = int(value)
        elif argument.startswith("-"):
            arguments.overrides.append(argument)
        else:
            arguments.recipes.append(argument)
    return arguments


def _recipe_problem(recipes: list[str]) -> str:
    if not recipes:
        return f"RECIPE.yaml: missing; {USAGE} (--help lists every key)"
    return f"{recipes[1]}: one recipe is enough ({recipes[0]}); keys are set with --section.key=value, with the = sign"


def _refuse(error: ConfigError, place: Place) -> int:
    """Rank 0 alone tells the problems. The others leave later: launchers end all ranks when the first one leaves."""
    if place.rank == 0:
        print(error, file=sys.stderr, flush=True)
    else:
        time.sleep(WAIT_SECONDS)
    return error.exit_code
