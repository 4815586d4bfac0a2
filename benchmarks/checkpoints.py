"""How long training waits for a checkpoint, and a restart for its weights, beside the disk, torch.save and DeepSpeed's own checkpoints.

    python -m benchmarks.checkpoints [--rounds N] [--folder DIR] [--output FILE.json]

Two ranks under ZeRO-1 hold a model of 201 million parameters, weights and both moments: 2.4 GB. In every round, one after another, they
write that many bytes with plain writes and fsync ("disk"), with torch.save and fsync, with DeepSpeed's save_checkpoint, with ours waited
for ("synchronous"), and with ours while training steps go on ("asynchronous": its stall is what training waits). Then they read it back,
from the disk if this process may drop the page cache: the file's bytes, DeepSpeed's load_checkpoint, and ours; at last two other ranks,
tensor parallel, resume ours. DIR is on the disk to be measured (default: the working directory).
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.engine import build_engine, fp32
from benchmarks.machine import write
from megatron_ngpt.parallel.device import choose_device

MODEL = {"hidden": 1024, "layers": 8, "heads": 16, "context": 64}
VOCABULARY = 32768
BLOCK = 4 << 20
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Bench:
    """One rank's part: every way to save and to load, timed with a barrier on both sides."""

    def __init__(self, engine, folder: Path):
        from megatron_ngpt.checkpoint.pieces import held_tensors
        from megatron_ngpt.checkpoint.saver import Saver
        from megatron_ngpt.data.batches import Rows

        self.engine, self.folder, self.rank = engine, folder, dist.get_rank()
        tokens = np.random.default_rng(self.rank).integers(0, VOCABULARY, (1, MODEL["context"] + 1), dtype=np.int32)
        self.rows = Rows(tokens, [], np.zeros(len(tokens), np.int64))
        self.saver = Saver()
        self.bytes = 3 * sum(view.nbytes for held in held_tensors(engine.shards, None).values() for view in held.views.values())
        self.times: dict[str, list[float]] = {}

    def step(self) -> None:
        self.engine.step(self.rows, 1e-4, measure=False)

    def time(self, name: str, work: Callable[[], None]) -> None:
        """Seconds until the last rank is through, noted under `name`."""
        dist.barrier()
        began = time.perf_counter()
        work()
        dist.barrier()
        self.times.setdefault(name, []).append(time.perf_counter() - began)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}-{self.rank}"

    def round(self) -> None:
        """Every way once; only one copy lies on the disk at a time, but for what is read back."""
        self._asynchronous()
        self.time("disk write", self._plain_write)
        self.time("torch.save", self._torch_save)
        self._clear("torch")
        self.time("DeepSpeed save_checkpoint", lambda: self.engine.engine.save_checkpoint(str(self.folder / "deepspeed"), tag="one"))
        self.time("synchronous", lambda: (self._start(), self._wait()))
        self._cold()
        self.time("disk read", self._plain_read)
        self._clear("plain")
        self._cold()
        self.time("DeepSpeed load_checkpoint", lambda: self.engine.engine.load_checkpoint(str(self.folder / "deepspeed"), tag="one"))
        self.resume("resume")
        if self.rank == 0:
            shutil.rmtree(self.folder / "deepspeed")

    def resume(self, name: str) -> None:
        """Our checkpoint into masters, moments and weights."""
        from megatron_ngpt.checkpoint.dcp import load

        self._cold()
        self.time(name, lambda: (load(self.folder / "ours", self.engine.shards, self.engine.base), self.engine.publish()))

    def _asynchronous(self) -> None:
        for _ in range(2):
            self.time("step alone", self.step)
        self.time("asynchronous stall", self._start)
        saved = None
        while not self._everywhere(saved is not None):
            self.time("step beside a save", self.step)
            saved = saved or self.saver.finished()
        self.times.setdefault("asynchronous, whole", []).append(saved.seconds)

    def _everywhere(self, here: bool) -> bool:
        """Whether it is so on every rank (collective)."""
        agreed = torch.tensor(float(here))
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return bool(agreed)

    def _start(self) -> None:
        self.saver.start(self.folder / "ours", self.engine.shards, self.engine.base, 1, dict)

    def _wait(self) -> None:
        assert self.saver.wait().error is None

    def _plain_write(self) -> None:
        block = os.urandom(BLOCK)
        with open(self.path("plain"), "wb") as file:
            for _ in range(self.bytes // BLOCK):
                file.write(block)
            _flush(file)

    def _plain_read(self) -> None:
        with open(self.path("plain"), "rb", buffering=0) as file:
            while file.read(BLOCK):
                pass

    def _torch_save(self) -> None:
        buffers = {id(shard.buffer): shard.buffer for shard in self.engine.shards.values() if shard.count}
        kept = [[buffer, *(self.engine.base.state[buffer][key] for key in ("exp_avg", "exp_avg_sq"))] for buffer in buffers.values()]
        with open(self.path("torch"), "wb") as file:
            torch.save(kept, file)
            _flush(file)

    def _clear(self, name: str) -> None:
        dist.barrier()
        self.path(name).unlink()

    def _cold(self) -> None:
        dist.barrier()
        if self.rank == 0 and os.access(DROP_CACHES, os.W_OK):
            os.sync()
            DROP_CACHES.write_text("1\n")
        dist.barrier()


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


class ReadBytes(logging.Handler):
    """Hears what `checkpoint.dcp.load` logs: bytes read, and bytes of the rank's share."""

    def emit(self, record: logging.LogRecord) -> None:
        _, self.read, self.share = record.args


def on_rank(rank: int, stage: int, tensor: int, rounds: int, folder: str, began: float) -> None:
    """One rank: the rounds, or, for tensor parallel ranks, a restart `began` at that time; results to a JSON file."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29578")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    device = choose_device()
    from megatron_ngpt.checkpoint import dcp
    from megatron_ngpt.parallel.device import start_process_group

    heard = ReadBytes()
    dcp.log.setLevel(logging.INFO)
    dcp.log.addHandler(heard)
    start_process_group(device, print)
    bench = Bench(build_engine(MODEL, VOCABULARY, fp32(stage), device, tensor), Path(folder))
    if rounds:
        bench.saver.prepare(bench.engine.shards)  # as the training loop does
        bench.step()
        for _ in range(rounds):
            bench.round()
    else:
        bench.resume("resume, tensor parallel")
        bench.step()
        bench.times["restart to the end of the first step, tensor parallel"] = [time.time() - began]
    result = {"bytes": bench.bytes, "read": heard.read, "share": heard.share, "seconds": bench.times}
    (Path(folder) / f"result-{tensor}-{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of the first one only the stall is told: its files are new")
    parser.add_argument("--folder", type=Path, default=Path("."))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/checkpoints.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        torch.multiprocessing.spawn(on_rank, args=(1, 1, options.rounds, folder, time.time()), nprocs=2)
        torch.multiprocessing.spawn(on_rank, args=(0, 2, 0, folder, time.time()), nprocs=2)
        results = {
            name: [json.loads((Path(folder) / f"result-{tensor}-{rank}.json").read_text()) for rank in range(2)]
            for name, tensor in (("ZeRO-1 on 2", 1), ("tensor parallel 2", 2))
        }
    result = {"cold_reads": os.access(DROP_CACHES, os.W_OK), "results": results}
    print(table(result), flush=True)
    write(options.output, result)


def table(result: dict) -> str:
    """The result as Markdown: medians over rounds, on rank 0."""
    first, other = (of_rank[0] for of_rank in result["results"].values())
    seconds = {name: times[1:] for name, times in first["seconds"].items()} | other["seconds"]
    total, sync = sum(r["bytes"] for r in result["results"]["ZeRO-1 on 2"]), statistics.median(seconds["synchronous"])
    lines = [f"{total / 1e9:.2f} GB in two files", "", "| | s | GB/s | / synchronous save |", "| --- | --- | --- | --- |"]
    for name, times in seconds.items():
        middle = statistics.median(times)
        rate = "–" if "step" in name or "stall" in name or "restart" in name else f"{total / 1e9 / middle:.2f}"
        lines.append(f"| {name} | {middle:.2f} | {rate} | {middle / sync:.2f} |")
    lines.append("")
    lines.append(f"first stall of a run: {first['seconds']['asynchronous stall'][0]:.2f} s")
    for name, of_rank in result["results"].items():
        shares = ", ".join(f"{r['read'] / 1e6:,.1f} MB for a share of {r['share'] / 1e6:,.1f}" for r in of_rank)
        lines.append(f"{name}: a rank read {shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
