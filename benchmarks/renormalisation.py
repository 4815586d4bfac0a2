"""What returning the weights to the sphere adds to the fused AdamW update of the same weights, on 1 rank and under ZeRO-3 on 2.

    python -m benchmarks.renormalisation [--rounds N] [--output FILE.json]

On the masters that DeepSpeed holds, in turn: the update; the update with each block of rows rescaled while a cache has it, as training does
on a CPU; and all rows rescaled after an update, eager and compiled, as on other devices. Ratios are medians over rounds. Printed beside
them: the bytes of partial sums a rank reduces for one renormalisation, measured, and by the formula of megatron_ngpt/sphere/rows.py.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing

from benchmarks.engine import build_engine, fp32
from benchmarks.machine import write
from megatron_ngpt.parallel.device import choose_device

MODEL = {"hidden": 768, "layers": 10, "heads": 12, "context": 1024}  # 119 million parameters
VOCABULARY = 16001  # odd, so that two ranks cut a row of each embedding


def measure(rank: int, ranks: int, stage: int, rounds: int, output: str) -> None:
    """On one rank: the seconds of both, and the bytes, to a JSON file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29577")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    device = choose_device()
    from megatron_ngpt.parallel.device import start_process_group
    from megatron_ngpt.parallel.shards import stepped_buffers
    from megatron_ngpt.sphere.blockwise import BlockwiseAdamW
    from megatron_ngpt.sphere.renormalise import Renormaliser

    start_process_group(device, print)
    engine = build_engine(MODEL, VOCABULARY, fp32(stage), device)
    buffers = stepped_buffers(engine.optimizer) or list(engine.engine.module.parameters())
    for buffer in buffers:
        buffer.grad = torch.full_like(buffer, 1e-4)
    update, blockwise = (BlockwiseAdamW(buffers, lr=1e-4, weight_decay=0) for _ in range(2))
    renormaliser = engine.renormaliser
    blockwise.hand_on(renormaliser.rows, renormaliser.rescale)
    compiled = Renormaliser(engine.shards, engine.grid, engine.optimizer, compiled=True)

    def in_blocks() -> None:
        blockwise.step()
        renormaliser.renormalise(whole=False)

    works = {"adamw": update.step, "in blocks": in_blocks, "after": renormaliser.renormalise, "compiled": compiled.renormalise}
    times, before = {name: [] for name in works}, renormaliser.bytes_reduced
    for number in range(-2, rounds):
        for name, work in works.items():
            torch.distributed.barrier()
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - start)
    sent = (renormaliser.bytes_reduced - before) / (2 * (rounds + 2))
    parameters = sum(math.prod(s.placement.local) for s in engine.shards.values())
    result = {"ranks": ranks, "zero_stage": stage, "parameters": parameters, "seconds": times, "bytes": sent,
              "formula_bytes": 4 * cut_rows(engine)}
    if rank == 0:
        Path(output).write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def cut_rows(engine) -> int:
    """Rows that ZeRO-3 cuts anywhere in the data group: each parameter's partition boundaries that fall inside a row."""
    ranks, cut = engine.grid.replicas.size, 0
    for parameter in engine.engine.module.parameters():
        if parameter.placement.record.spherical and hasattr(parameter, "ds_id"):
            rows, columns = parameter.ds_shape
            boundaries = [r * parameter.ds_tensor.ds_numel for r in range(1, ranks)]
            cut += len({b // columns for b in boundaries if b % columns and b < rows * columns})
    return cut


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/renormalisation.json"))
    options = parser.parse_args()
    adamw = "AdamW ms", "in blocks, adds ms", "after it ms", "compiled ms"
    print("| " + " | ".join(["ranks", "ZeRO", "parameters", *adamw, "bytes reduced a rank", "by the formula"]) + " |")
    print("| --- " * 9 + "|")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks, stage in ((1, 0), (2, 3)):
            path = Path(folder) / f"{ranks}.json"
            torch.multiprocessing.spawn(measure, args=(ranks, stage, options.rounds, str(path)), nprocs=ranks)
            results.append(json.loads(path.read_text()))
            print(row(results[-1]), flush=True)
    write(options.output, {"results": results})


def row(result: dict) -> str:
    """A line of the table."""
    seconds = result["seconds"]
    adamw, none = seconds["adamw"], [0.0] * len(seconds["adamw"])

    def over_adamw(name: str, less: list[float]) -> str:
        own = [second - taken for second, taken in zip(seconds[name], less, strict=True)]
        ratio = statistics.median(mine / a for mine, a in zip(own, adamw, strict=True))
        return f"{1000 * statistics.median(own):.1f} = {ratio:.2f} ×"

    cells = [
        result["ranks"], result["zero_stage"], f"{result['parameters']:,}", f"{1000 * statistics.median(adamw):.1f}",
        over_adamw("in blocks", adamw), over_adamw("after", none), over_adamw("compiled", none), f"{result['bytes']:.0f}",
        result["formula_bytes"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
