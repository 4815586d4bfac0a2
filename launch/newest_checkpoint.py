#!/usr/bin/env python3
"""Print the step of the newest checkpoint of a recipe's run, 0 if there is none: newest_checkpoint.py RECIPE.yaml [--section.key=value]...

The scripts that start a run again ask whether the last start has come any further.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.config.load import load_recipe
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.training.entry import parse

if __name__ == "__main__":
    try:
        arguments = parse(sys.argv[1:])
        output = Path(load_recipe(arguments.recipe, arguments.overrides).training.output)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(max([int(path.name.removeprefix("step-")) for path in Catalogue(output).named()], default=0))
