"""What monitoring costs: training steps of which nothing is told, steps that are logged, and steps at which every layer is looked at.

    python -m benchmarks.monitoring [--rounds N] [--output FILE.json]

The quickstart's model and batch on one rank, through the engine, with all that a run writes (metrics.jsonl, TensorBoard). In every round
each kind makes one step, so that a slow minute of the machine hits all alike; on a CPU seconds are of this process's own time, all its
threads together, in which others' work does not count. A run at the defaults logs every step and looks at every
layer at every hundredth; its cost is that of so many logged steps and one of the others over as many untold ones.
"""

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from rich.progress import track

from benchmarks.machine import write
from megatron_ngpt.config.deepspeed_json import engine_config, read_deepspeed
from megatron_ngpt.config.recipe import Monitor as MonitorSection
from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.batches import Rows
from megatron_ngpt.monitor.devices import peak_flops
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.parallel.device import choose_device, start_process_group

MODEL = {"layers": 4, "hidden": 256, "heads": 4, "context": 256, "vocab": 4096}
BATCH = {"global_batch": 8, "micro_batch": 4, "steps": 1_000_000}
KINDS = ("untold", "logged", "every layer")


class Batches:
    """Random rows, in place of a dataset."""

    def __init__(self):
        tokens = np.random.default_rng(0).integers(0, MODEL["vocab"], (BATCH["global_batch"], MODEL["context"] + 1)).astype(np.int32)
        self.all = Rows(tokens, [], np.zeros(len(tokens), np.int64))

    def rows(self, _step: int, start: int, stop: int) -> Rows:
        """Some of them."""
        return Rows(self.all.tokens[start:stop], [], self.all.sources[start:stop])

    def epochs(self, _step: int) -> list[float]:
        """Of the one source."""
        return [0.0]


class Run:
    """A run that takes a step of one kind or another, and says how long it took."""

    def __init__(self, output: Path):
        from megatron_ngpt.parallel.grid import make_grid
        from megatron_ngpt.training.engine import Engine
        from megatron_ngpt.training.line import TrainingLine
        from megatron_ngpt.training.phase import Phase

        device = choose_device()
        self.clock = time.perf_counter if device.type == "cuda" else time.process_time
        start_process_group(device, print)
        recipe = Recipe.model_validate({
            "model": MODEL, "training": {"output": str(output), **BATCH}, "monitor": {"every": 1},
            "data": {"tokenizer": "none is read", "train": [{"prefix": "none is read"}]},
        })  # fmt: skip
        self.batches, choice, self.number = Batches(), read_deepspeed(recipe.deepspeed), 0
        self.engine = Engine(recipe, MODEL["vocab"], engine_config(recipe, choice, 1), make_grid(), device)
        self.engine.initialise()
        ready = SimpleNamespace(recipe=recipe, vocabulary=MODEL["vocab"], deepspeed=choice)
        monitor = Monitor(recipe, 0, 0, io.StringIO())
        phase = Phase(0, MODEL["context"], BATCH["global_batch"])
        every = {"logged": 0, "every layer": 1}
        self.lines = {}
        for kind, often in every.items():
            told = SimpleNamespace(**{**vars(ready), "recipe": recipe.model_copy(update={"monitor": MonitorSection(every=often)})})
            self.lines[kind] = TrainingLine(told, self.engine, self.batches, [phase], monitor, vetoed=0)

    def step(self, kind: str) -> float:
        """Seconds of one step of a kind, until the device is done with it."""
        began = self.clock()
        self.number += 1
        if kind == "untold":
            self.engine.step(self.batches.all, 1e-3, measure=False)
        else:
            self.engine.clock.restart(self.number - 1)
            self.lines[kind].due(self.number)
            with self.engine.clock.measured(self.number):
                outcome = self.engine.step(self.batches.all, 1e-3, measure=True)
            result = outcome.read()
            self.lines[kind].saw([result])
            self.lines[kind].tell(self.number, result, 1e-3)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.clock() - began


def cost(times: dict[str, list[float]], log_every: int, every: int) -> float:
    """Of a run that logs every `log_every` steps and looks at every layer at each `every`, in seconds over those of an untold one, less 1:
    the median over rounds."""
    logged, dear = 1 / log_every - 1 / every, 1 / every
    ratios = [
        (logged * b + dear * c + (1 - logged - dear) * a) / a for a, b, c in zip(*(times[kind] for kind in KINDS), strict=True)
    ]
    return statistics.median(ratios) - 1


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="counted steps of each kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/monitoring.json"))
    options = parser.parse_args()
    defaults = MonitorSection().every
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for number in track(range(-3, options.rounds), transient=True):
            turn = number % len(KINDS)  # each kind comes first, and last, as often as another
            for kind in KINDS[turn:] + KINDS[:turn]:
                seconds = run.step(kind)
                if number >= 0:
                    times[kind].append(seconds)
        began = time.perf_counter()
        peak_flops(run.engine.device, torch.float32)
        start = time.perf_counter() - began
    print("| step | ms | / untold |\n| --- | --- | --- |")
    for kind, seconds in times.items():
        over = statistics.median(b / a for a, b in zip(times["untold"], seconds, strict=True))
        print(f"| {kind} | {1000 * statistics.median(seconds):.1f} | {over:.3f} |")
    costs = {f"log_every {log}, monitor.every {defaults}": cost(times, log, defaults) for log in (1, 10)}
    for name, share in costs.items():
        print(f"{name}: {100 * share:.2f}%")
    print(f"once, at the start: {1000 * start:.0f} ms")
    write(options.output, {"seconds": times, "cost": costs, "start": start})


if __name__ == "__main__":
    main()
