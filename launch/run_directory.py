#!/usr/bin/env python3
"""What the scripts that start a run again ask of its run directory: run_directory.py QUESTION RECIPE.yaml [--section.key=value]...

newest: print the step of the newest checkpoint, 0 if there is none.
free: wait until no run uses the directory any more; exit status 0 if none did, else 1.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.ownership import check_free, user_of
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.training.entry import parse


def newest(output: Path) -> int:
    print(max([int(path.name.removeprefix("step-")) for path in Catalogue(output).named()], default=0))
    return 0


def free(output: Path) -> int:
    user = user_of(output)
    if user is None:
        return 0
    print(f"{output} is still used by {user}; waiting until that run has left it", file=sys.stderr, flush=True)
    while True:
        try:
            check_free(output, "")
            return 1
        except ConfigError:  # it lives
            time.sleep(0.5)


if __name__ == "__main__":
    try:
        arguments = parse(sys.argv[2:])
        output = Path(load_recipe(arguments.recipe, arguments.overrides).training.output)
        sys.exit({"newest": newest, "free": free}[sys.argv[1]](output))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
