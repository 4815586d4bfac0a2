#!/usr/bin/env python3
"""Pretrain a model: deepspeed [launcher options] launch/pretrain.py RECIPE.yaml [--section.key=value ...]; see --help."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("megatron_ngpt") is None:     # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ngpt.console import leave
from megatron_ngpt.training.entry import main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
