"""Time of a step on 2 ranks, eager and compiled, where weights are gathered as blocks run (ZeRO-3) and where they are whole (ZeRO-1).

    python -m benchmarks.gathered [--rounds N] [--hidden D] [--layers L] [--output FILE.json]

Steps are those of the training engine in bf16, one of each kind a round; the table gives medians, and ratios as medians over rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from benchmarks.engine import build_engine
from benchmarks.machine import write
from megatron_ngpt.config.deepspeed_json import read_deepspeed
from megatron_ngpt.parallel.device import choose_device

RANKS, VOCABULARY, CONTEXT = 2, 16384, 1024
KINDS = {f"ZeRO-{stage} {mode}": (f"bf16-zero{stage}", mode == "compiled") for stage in (1, 3) for mode in ("eager", "compiled")}


def measure(rank: int, hidden: int, layers: int, rounds: int, output: str) -> None:
    """On one rank: the seconds of every kind's steps, to a JSON file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT="29578")
    device = choose_device()
    from megatron_ngpt.data.batches import Rows
    from megatron_ngpt.parallel.device import start_process_group

    start_process_group(device, print)
    model = {"hidden": hidden, "layers": layers, "heads": hidden // 64, "context": CONTEXT}
    engines = {
        kind: build_engine(model, VOCABULARY, read_deepspeed(file), device, compiled=compiled) for kind, (file, compiled) in KINDS.items()
    }
    tokens = np.random.default_rng(rank).integers(0, VOCABULARY, (1, CONTEXT + 1)).astype(np.int32)
    rows, times = Rows(tokens, [], np.zeros(1, np.int64)), {kind: [] for kind in KINDS}
    for number in range(-3, rounds):
        for kind, engine in engines.items():
            torch.distributed.barrier()
            start = time.perf_counter()
            engine.step(rows, 1e-4, measure=False).read()
            torch.distributed.barrier()
            if number >= 0:
                times[kind].append(time.perf_counter() - start)
    if rank == 0:
        Path(output).write_text(json.dumps(times))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gathered.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        torch.multiprocessing.spawn(measure, args=(options.hidden, options.layers, options.rounds, str(path)), nprocs=RANKS)
        seconds = json.loads(path.read_text())
    print("| hidden × layers | ZeRO | eager ms | compiled ms | compiled / eager |\n| --- | --- | --- | --- | --- |")
    for stage in (1, 3):
        eager, compiled = (seconds[f"ZeRO-{stage} {mode}"] for mode in ("eager", "compiled"))
        ratio = statistics.median(c / e for c, e in zip(compiled, eager, strict=True))
        medians = " | ".join(f"{1000 * statistics.median(times):.0f}" for times in (eager, compiled))
        print(f"| {options.hidden}x{options.layers} | {stage} | {medians} | {ratio:.3f} |")
    write(options.output, {"seconds": seconds})


if __name__ == "__main__":
    main()
