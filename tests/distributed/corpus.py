"""A small corpus for runs: sources of the standard library, a tokenizer and two datasets of them, and the recipe that trains on them."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]

RECIPE = {
    "model": {"layers": 4, "hidden": 80, "heads": 4, "context": 48},  # no matrix's rows divide by 3: three data ranks cut rows
    # Adam makes a whole step of a gradient that is rounding alone: the paper's eps of 1e-8 would show the processor.
    "optimizer": {"lr": 0.003, "clip": 0.1, "eps": 1.0e-5},
    "training": {"steps": 20, "global_batch": 12, "micro_batch": 2, "output": "given by the test"},
    "deepspeed": "ds_configs/zero0.json",
}


def make_corpus(directory: Path) -> Path:
    """Fills `directory` with tokenizer.model, datasets a and b, and recipe.yaml (its sizes divide over 2 and 4 tensor ranks)."""
    directory.mkdir(parents=True)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for name, files in (("a", sources[:40]), ("b", sources[40:60])):
        with (directory / f"{name}.jsonl").open("w") as file:
            for source in files:
                file.write(json.dumps({"text": source.read_text(errors="replace")[:20_000]}) + "\n")
    _data_tool("train-tokenizer", "--input", directory / "a.jsonl", "--vocab_size", "332", "--output", directory / "tokenizer")
    tokenizer = directory / "tokenizer.model"
    for name in "ab":
        _data_tool("preprocess", "--input", directory / f"{name}.jsonl", "--tokenizer", tokenizer, "--output", directory / name)
    recipe = RECIPE | {"data": {"tokenizer": str(tokenizer), "train": [{"prefix": str(directory / "a")}]}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def _data_tool(*arguments) -> None:
    command = [sys.executable, "-m", "data_tools", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
