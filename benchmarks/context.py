"""Peak memory a rank and time of a training step from 1k to 64k tokens, on 1, 2 and 4 ranks that divide the context.

    python -m benchmarks.context [--lengths N ...] [--ranks N ...] [--picture FILE.png] [--output FILE.json]

One sample of the given length, through the training engine, as `launch/pretrain.py` builds it (fp32, ZeRO-0). Peaks are those of torch's
allocator, beyond what a rank held before, so they are exact and the same on any CPU; time is the second step's, of 32k tokens and more the
first's, which takes minutes. All ranks share this machine's cores, so more of them save memory here and no time.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from benchmarks.machine import peak_bytes, write
from megatron_ngpt.parallel.device import choose_device

MODEL = {"hidden": 128, "layers": 6, "heads": 4}
VOCABULARY = 4096
LONG = 32768  # tokens of which one step is enough
KINDS = ("ulysses", "ring")


def train(length: int, ranks: int, kind: str) -> float:
    """Build an engine and make two steps, or one where it is long; seconds of the last."""
    from megatron_ngpt.config.deepspeed_json import DeepSpeedChoice, engine_config
    from megatron_ngpt.config.grid import given_sizes
    from megatron_ngpt.config.recipe import Recipe
    from megatron_ngpt.data.batches import Rows
    from megatron_ngpt.parallel.grid import make_grid
    from megatron_ngpt.training.engine import Engine

    recipe = Recipe.model_validate(
        {
            "model": MODEL | {"context": length},
            "parallel": {"context": ranks, "context_kind": kind},
            "data": {"tokenizer": "none is read", "train": [{"prefix": "none is read"}]},
            "training": {"output": "nothing is written", "global_batch": 1, "micro_batch": 1},
        }
    )
    grid = make_grid(**given_sizes(recipe.parallel))
    config = engine_config(recipe, DeepSpeedChoice(0, False, False, {"zero_optimization": {"stage": 0}}), grid.readers.size)
    engine = Engine(recipe, VOCABULARY, config, grid, choose_device())
    engine.initialise()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (1, length + 1)).astype(np.int32)
    for _ in range(1 if length >= LONG else 2):
        start = time.perf_counter()
        engine.step(Rows(tokens, [], np.zeros(len(tokens), np.int64)), 1e-3, measure=False).read()
    return time.perf_counter() - start


def measure(rank: int, length: int, ranks: int, kind: str, output: str) -> None:
    """On one rank: peak bytes and seconds, to a JSON file a rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29578")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    choose_device()
    from megatron_ngpt.parallel.device import start_process_group

    start_process_group(choose_device(), print)
    peak, seconds = peak_bytes(lambda: train(length, ranks, kind))
    Path(f"{output}.{rank}").write_text(json.dumps({"bytes": peak, "seconds": seconds}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(length: int, ranks: int, kind: str) -> dict:
    """The largest peak and the longest time of any rank."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(measure, (length, ranks, kind, f"{folder}/rank"), nprocs=ranks)
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return {"length": length, "ranks": ranks, "kind": kind, **{key: max(one[key] for one in found) for key in ("bytes", "seconds")}}


def draw(rows: list[dict], picture: Path) -> None:
    """Peak and time over length, a line for each way to divide the context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ranks, kind in sorted({(row["ranks"], row["kind"]) for row in rows}):
        line = [row for row in rows if (row["ranks"], row["kind"]) == (ranks, kind)]
        label, style = ("1 rank", "k-") if ranks == 1 else (f"{ranks} ranks, {kind}", "o-" if kind == "ulysses" else "s--")
        left.plot([row["length"] for row in line], [row["bytes"] / 2**20 for row in line], style, label=label)
        right.plot([row["length"] for row in line], [row["seconds"] for row in line], style, label=label)
    for axes, title in ((left, "peak memory a rank, MiB"), (right, "seconds a step, all ranks on the same cores")):
        axes.set(xscale="log", yscale="log", xlabel="tokens of the sample", title=title)
        axes.set_xticks(lengths := sorted({row["length"] for row in rows}), [f"{length // 1024}k" for length in lengths])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure, print the table, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--picture", type=Path, default=Path("docs/context.png"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/context.json"))
    options = parser.parse_args()
    print("| tokens | ranks | | peak MiB | of one rank's | seconds |\n| --- | --- | --- | --- | --- | --- |")
    rows = []
    for length in options.lengths:
        for ranks in options.ranks:
            for kind in KINDS if ranks > 1 else KINDS[:1]:
                rows.append(found := run(length, ranks, kind))
                alone = next((row["bytes"] for row in rows if row["length"] == length and row["ranks"] == 1), None)
                share = f"{found['bytes'] / alone:.2f}" if alone else "–"
                name = kind if ranks > 1 else ""
                print(f"| {length:,} | {ranks} | {name} | {found['bytes'] / 2**20:,.0f} | {share} | {found['seconds']:.2f} |", flush=True)
    write(options.output, {"model": MODEL, "vocabulary": VOCABULARY, "rows": rows})
    draw(rows, options.picture)


if __name__ == "__main__":
    main()
