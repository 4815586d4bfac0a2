"""Where the seconds go between a command and the end of its first step, on a tiny recipe.

    python -m benchmarks.startup [--rounds N] [--output FILE.json]

One rank by itself and two through deepspeed, eager; one rank compiled, with an empty and with a filled cache. The marks are
lines that every run prints and logs. All ranks share this machine's cores.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import psutil
from rich.progress import track

from benchmarks.machine import write
from tests.distributed.corpus import REPOSITORY, make_corpus

PHASES = {  # what a phase is, by the mark that ends it
    "process": "launcher, until rank 0 is a process",
    "checked": "Python, arguments, recipe and data checked",
    "met": "torch and DeepSpeed imported, ranks met",
    "built": "engine, run directory",
    "stepped": "first step",
}
SCRIPT = [str(REPOSITORY / "launch" / "pretrain.py")]
HERE = Path(sys.executable).parent
COMMANDS = {
    "one rank": [sys.executable, *SCRIPT],
    "two ranks, deepspeed": [str(HERE / "deepspeed"), "--quiet", "--num_gpus", "2", *SCRIPT],
    "one rank, compiled, empty cache": [sys.executable, *SCRIPT, "--training.compile=true"],
    "one rank, compiled, filled cache": [sys.executable, *SCRIPT, "--training.compile=true"],
}
LOGGED = re.compile(r"^(\S+ \S+) INFO \S+: (.*)$", re.MULTILINE)


def start(command: list[str], corpus: Path, output: Path, cache: Path) -> dict[str, float]:
    """Seconds of each phase of one start."""
    options = ["--training.steps=1", "--checkpoint.every=0", f"--training.output={output}"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    marks, began = {}, time.time()
    with subprocess.Popen(
        [*command, str(corpus / "recipe.yaml"), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=REPOSITORY, env=environment,
    ) as run:  # fmt: skip
        for line in run.stdout:
            if line.rstrip().endswith("; starting"):
                marks["checked"] = time.time()
            elif " rank" in line and "ZeRO" in line:
                marks["built"] = time.time()
                lines = LOGGED.findall((output / "logs" / "rank-00000.log").read_text())
                number = next(int(re.search(r"process (\d+)", said)[1]) for _, said in lines if " process " in said)
                marks["process"] = psutil.Process(number).create_time()
                marks["met"] = next(datetime.fromisoformat(at).timestamp() for at, said in lines if said.startswith("rank 0 of "))
            elif line.startswith("step 1/"):
                marks["stepped"] = time.time()
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {run.returncode}")
    times = [began, *(marks[phase] for phase in PHASES)]
    return dict(zip(PHASES, (max(0.0, after - before) for before, after in itertools.pairwise(times)), strict=True))


def main() -> None:
    """Measure, print the table, and write it with the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "results" / "startup.json")
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for number in track(range(given.rounds), "rounds"):
            for name, command in COMMANDS.items():
                found[name].append(start(command, corpus, Path(folder) / f"{number}{len(name)}", Path(folder) / f"cache{number}"))
    rows = {
        name: {phase: median(one[phase] for one in rounds) for phase in PHASES} | {"all": median(sum(one.values()) for one in rounds)}
        for name, rounds in found.items()
    }
    print(f"| | {' | '.join(PHASES.values())} | all |\n|{' --- |' * (len(PHASES) + 2)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{seconds:.2f}' for seconds in row.values())} |")
    write(given.output, {"seconds": rows, "rounds": found})


if __name__ == "__main__":
    main()
