"""A run's pace beside the bare step's: what all that a run does around its steps costs.

    python -m benchmarks.run [--rounds N] [--deepspeed FILE.json] [--compiled] [--output FILE.json]

Every round has a run make its next ten steps, the training loop's own: rows read from a dataset, ranks asked whether to stop, verdict,
learning rate, one step of the ten logged, monitoring off; its pace is the `tokens_per_second` that it writes into metrics.jsonl. Then ten
steps of the engine alone, on rows that are there; then ten bare ones: forward, loss, backward, clip, AdamW, renormalisation, in a loop of
a few lines without DeepSpeed. All on one rank, the same model and batch. Beside the pace stands this process's own time, all its threads
together, in which others' work on the machine does not count.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from benchmarks.machine import write
from benchmarks.masters import Masters
from megatron_ngpt.config.deepspeed_json import engine_config
from megatron_ngpt.data.batches import Rows
from megatron_ngpt.monitor.metrics import read_metrics
from megatron_ngpt.parallel.device import choose_device, start_process_group
from megatron_ngpt.training.preflight import Ready, preflight
from tests.distributed.corpus import make_corpus

STEPS = 10  # of a kind in a row; the last of a run's is logged
LR = 1e-3
OPTIONS = {
    "model.layers": 4, "model.hidden": 256, "model.heads": 4, "model.context": 256, "model.vocab": 4096, "training.global_batch": 8,
    "training.micro_batch": 4, "training.steps": 1_000_000, "training.log_every": STEPS, "monitor.every": 0, "checkpoint.every": 0,
    "optimizer.clip": 1.0, "schedule.kind": "constant", "optimizer.lr": LR,
}  # fmt: skip


class Bare:
    """The same model in a loop of its own: weights in the run's type, fp32 masters where that is another."""

    def __init__(self, ready: Ready, rows: Rows, device: torch.device):
        from megatron_ngpt.model.blueprint import Blueprint
        from megatron_ngpt.model.decoder import Decoder
        from megatron_ngpt.model.initial import initialise
        from megatron_ngpt.parallel.shards import shards_of

        recipe = ready.recipe
        self.module = Decoder(Blueprint(recipe.model, ready.vocabulary, compile=recipe.training.compile)).to(device)
        initialise(shards_of(self.module), 0)
        dtype = torch.bfloat16 if ready.deepspeed.bf16 else torch.float32
        self.masters = Masters(self.module, dtype, lr=LR, betas=recipe.optimizer.betas)
        self.masters.return_to_sphere(recipe.training.compile)
        tokens = torch.from_numpy(rows.tokens).long().to(device)
        self.micro_batches = [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in tokens.split(recipe.training.micro_batch)]
        self.clip = recipe.optimizer.clip

    def step(self) -> None:
        """One update."""
        for tokens, targets in self.micro_batches:
            (self.module(tokens, targets) / len(self.micro_batches)).backward()
        self.masters.take_gradients()
        torch.nn.utils.clip_grad_norm_(self.masters.masters, self.clip, foreach=True)
        self.masters.update()
        self.masters.give_back()


class Paces:
    """Tokens a second of a run, of its engine alone and of bare steps, `STEPS` steps at a time."""

    def __init__(self, corpus: Path, output: Path, options: list[str]):
        from megatron_ngpt.parallel.grid import make_grid
        from megatron_ngpt.training.engine import Engine
        from megatron_ngpt.training.loop import Trainer

        device, given = choose_device(), [f"--{key}={value}" for key, value in OPTIONS.items()]
        start_process_group(device, print)
        ready = preflight(str(corpus / "recipe.yaml"), [*given, *options, f"--training.output={output}"], 1)
        self.output, self.recipe = output, ready.recipe
        self.trainer = Trainer(ready, device, io.StringIO())
        rows = self.trainer.rows.now(self.trainer.train_data, 1)
        engine = Engine(ready.recipe, ready.vocabulary, engine_config(ready.recipe, ready.deepspeed, 1), make_grid(), device)
        engine.initialise()
        bare = Bare(ready, rows, device)
        self.kinds: dict[str, Callable[[], float]] = {
            "run": self.run,
            "engine": lambda: self.timed(lambda: engine.step(rows, LR, measure=False)),
            "bare": lambda: self.timed(bare.step),
        }

    def run(self) -> float:
        """The run goes on; its own figure."""
        clock = self.trainer.engine.clock
        clock.restart(self.trainer.step)
        for _ in range(STEPS):
            self.trainer.next_step(clock)
        self.trainer.monitor.sync()
        return read_metrics(self.output, "loss")[-1]["tokens_per_second"]

    def timed(self, step: Callable[[], object]) -> float:
        """Of steps that write no figure."""
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return STEPS * self.recipe.training.global_batch * self.recipe.model.context / (time.perf_counter() - began)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="counted turns of each kind")
    parser.add_argument("--deepspeed", default="ds_configs/zero0.json", help="DeepSpeed's file")
    parser.add_argument("--compiled", action="store_true", help="with training.compile")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/run.json"))
    options = parser.parse_args()
    given = [f"--deepspeed={options.deepspeed}", f"--training.compile={str(options.compiled).lower()}"]
    with tempfile.TemporaryDirectory() as folder:
        paces = Paces(make_corpus(Path(folder) / "corpus"), Path(folder) / "run", given)
        found: dict[str, list[float]] = {kind: [] for kind in paces.kinds}
        spent: dict[str, list[float]] = {kind: [] for kind in paces.kinds}
        names = list(found)
        for number in track(range(-1, options.rounds), transient=True):
            turn = number % len(names)  # each kind comes first, and last, as often as another
            for kind in names[turn:] + names[:turn]:
                began = time.process_time()
                pace = paces.kinds[kind]()
                if number >= 0:
                    found[kind].append(pace)
                    spent[kind].append((time.process_time() - began) / STEPS)
    print("| | tokens/s | / bare | processor ms a step | / bare |\n| --- | --- | --- | --- | --- |")
    for kind in found:
        pace, own = (statistics.median(figures[kind]) for figures in (found, spent))
        print(f"| {kind} | {pace:,.0f} | {over_bare(found, kind):.3f} | {1000 * own:.1f} | {over_bare(spent, kind):.3f} |")
    write(options.output, {"tokens_per_second": found, "processor_seconds": spent})


def over_bare(figures: dict[str, list[float]], kind: str) -> float:
    """The median over rounds of a kind's figure over the bare step's."""
    return statistics.median(mine / bare for mine, bare in zip(figures[kind], figures["bare"], strict=True))


if __name__ == "__main__":
    main()
