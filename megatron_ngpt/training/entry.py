"""The front door of a pretraining run: arguments, this process's rank, the checks, then the run.

Until the checks are passed, nothing here imports torch or DeepSpeed: a mistake costs a moment, not a start of every rank.
"""

import os
import re
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_ngpt.checkpoint.ownership import Ownership, check_free, claim
from megatron_ngpt.config.load import with_their_values
from megatron_ngpt.config.place import Place, devices, hosts, read_place, variables
from megatron_ngpt.config.reference import help_text
from megatron_ngpt.config.threads import crowded
from megatron_ngpt.console import show_anything, unknown_character
from megatron_ngpt.errors import ConfigError, NgptError, RankError, ToldError
from megatron_ngpt.training.launcher import launchers, missing_hostfile
from megatron_ngpt.training.preflight import preflight
from megatron_ngpt.training.restarts import count_restarts, patiently

USAGE = "usage: deepspeed [launcher options] launch/pretrain.py RECIPE.yaml [--section.key=value ...]"
HELP = f"""{USAGE}

Trains the model that a recipe describes. Also under torchrun and srun; for one rank, python launch/pretrain.py RECIPE.yaml.
Paths are resolved from the working directory. `ngpt check RECIPE.yaml --ranks N` checks a recipe without starting anything.
Exit status: 0 success, 1 failure at run time, 2 a mistake in the recipe or the options; 75 stopped by SIGTERM, SIGUSR1, SIGXCPU or the end
of its launcher, with a checkpoint: the same command goes on.

"""
WAIT_SECONDS = 2.0
LOCAL_RANK = re.compile(r"(--local[_-]rank)(?:[= ]|$)(.*)")


@dataclass
class Arguments:
    """The command line, taken apart; `local_rank` is what a launcher added."""

    recipes: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    local_rank: int | None = None

    @property
    def recipe(self) -> str:
        """The one recipe. Raises ConfigError if there is none, or another word beside it."""
        if not self.recipes:
            raise ConfigError(f"RECIPE.yaml: missing; {USAGE} (--help lists every key)")
        if len(self.recipes) > 1:
            raise ConfigError(f"{self.recipes[1]}: one recipe is enough ({self.recipes[0]}); keys are set with --section.key=value")
        return self.recipes[0]


def main(argv: list[str]) -> int:
    """Run `pretrain.py` with these arguments (without the program's name); returns the exit status."""
    show_anything()
    if "--help" in argv or "-h" in argv:
        print(HELP + help_text())
        return 0
    place = Place()
    try:
        launchers()  # while they all are there
        arguments = parse(argv)
        place = read_place(os.environ, arguments.local_rank)
        if problems := missing_hostfile():
            raise ConfigError(*problems)
        ready = preflight(arguments.recipe, arguments.overrides, place.world)
        os.environ.update(variables(place, os.environ))
        warning = crowded(os.environ, place)
        output = Path(ready.recipe.training.output)
        count_restarts(output, os.environ, writes=False)
        ready = replace(ready, ownership=patiently(lambda: own(output, place), os.environ))
        count_restarts(output, os.environ, writes=place.rank == 0)
        if place.rank == 0:  # torch and DeepSpeed take seconds to load
            who = f"{hosts(os.environ, place)}, {devices(os.environ)}"
            print(f"{arguments.recipe}: {who}, led by {socket.gethostname()}; starting", flush=True)
            if warning:
                print(warning, flush=True)
        try:
            from megatron_ngpt.training.run import run

            return run(ready)
        finally:
            if ready.ownership:
                ready.ownership.release()
    except ConfigError as error:
        return _refuse(error, place)
    except UnicodeEncodeError as error:
        return _refuse(ConfigError(unknown_character(error)), place)
    except KeyboardInterrupt:
        if place.rank == 0:
            print("interrupted before training began", file=sys.stderr, flush=True)
        return 130
    except ToldError as error:
        return error.exit_code
    except NgptError as error:
        if place.rank == 0 or isinstance(error, RankError):
            print(f"rank {place.rank}: {error}" if isinstance(error, RankError) else error, file=sys.stderr, flush=True)
        return error.exit_code


def own(output: Path, place: Place) -> Ownership | None:
    """Make the run directory this run's own, on rank 0; the others look whether it can be. Raises ConfigError if another run has it."""
    job = "/".join([*(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")), str(place.world)])
    if place.rank:
        check_free(output, job)
        return None
    try:
        return claim(output, job, lambda line: print(line, flush=True))
    except OSError as error:
        raise ConfigError(f"training.output = {output}: {error.filename or output} cannot be written: {error.strerror}") from error


def parse(argv: list[str]) -> Arguments:
    """Sort the arguments. Raises ConfigError for a local rank that is no number; overrides are judged with the recipe."""
    arguments = Arguments()
    for argument in with_their_values(argv):
        launcher = LOCAL_RANK.fullmatch(argument)
        if launcher:
            name, value = launcher.groups()
            if not value.isdigit():
                raise ConfigError(f"{name} = {value!r}: must be a whole number")
            arguments.local_rank = int(value)
        elif argument.startswith("-"):
            arguments.overrides.append(argument)
        else:
            arguments.recipes.append(argument)
    return arguments


def _refuse(error: ConfigError, place: Place) -> int:
    """Rank 0 alone tells the problems. The others leave later: launchers end all ranks when the first one leaves."""
    if place.rank == 0:
        print(error, file=sys.stderr, flush=True)
    else:
        time.sleep(WAIT_SECONDS)
    return error.exit_code
