"""What rank 0 and the start of a run cost at 64 to 16,384 ranks, on one machine that plays all of them.

    python -m benchmarks.scale [--worlds N ...] [--picture FILE.png] [--output FILE.json]

A model of 70 billion parameters under tensor 8 and ZeRO-1. Every rank's pieces are worked out from its place, without a number of them;
what the ranks send is pickled as torch.distributed sends it, and rank 0's part is run as a save runs it: plans of the first save and of
those after it, the results with a checksum for every chunk, and the lists that are written. Groups are made over torch's fake process
group, and the ranks meet at a real store, to which a few threads speak for all. Last, steps of a training thread beside what rank 0 does
in a save.
"""

import argparse
import bisect
import itertools
import math
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import track
from torch.distributed.checkpoint.planner import SavePlan
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.machine import write
from megatron_ngpt.checkpoint.pieces import MOMENTS, WEIGHTS, KeptPlans, Pieces, SavePlanner, chunk_bytes, divided, pieces
from megatron_ngpt.checkpoint.seal import TensorFile, seal
from megatron_ngpt.checkpoint.storage import Writer
from megatron_ngpt.checkpoint.stored import packed, told_piece
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.parallel.grid import Axis, make_grid
from megatron_ngpt.parallel.placement import Placement, place
from megatron_ngpt.parallel.shards import Shard

MODEL = Model(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=32000, context=4096)
RECORDS = parameter_table(MODEL, MODEL.vocab)
TENSOR = 8
KINDS = (WEIGHTS, *MOMENTS)
WHOLE = {f"{kind}/{name}": Pieces(torch.Size(record.shape), {}) for kind in KINDS for name, record in RECORDS.items()}
SPEAKERS = 8  # threads that speak to the store for all ranks


def placements(tensor: int) -> tuple[list[Placement], list[int]]:
    """What a tensor rank has of each parameter, and where it begins if all lie end to end (and, last, where they end)."""
    found = [place(record, Axis(tensor, TENSOR)) for record in RECORDS.values()]
    return found, [0, *itertools.accumulate(math.prod(one.local) for one in found)]


def held(rank: int, world: int) -> dict[str, Pieces]:
    """What a rank holds: its run of the tensor rank's parameters, end to end, as ZeRO-1 cuts them."""
    data, tensor = divmod(rank, TENSOR)
    (parts, begins), found = PLACEMENTS[tensor], {}
    each = -(-begins[-1] * TENSOR // world)
    at = bisect.bisect_right(begins, data * each) - 1
    while at < len(parts) and begins[at] < (data + 1) * each:
        first, last = max(begins[at], data * each), min(begins[at + 1], (data + 1) * each)
        shard = Shard(parts[at], first - begins[at], last - first, None, 0, 0)
        found[shard.name] = pieces(shard, torch.empty(last - first, device="meta"))
        at += 1
    return {f"{kind}/{name}": of_name for kind in KINDS for name, of_name in found.items()}


PLACEMENTS = [placements(tensor) for tensor in range(TENSOR)]


def results(plan: SavePlan, tensors: dict[str, Pieces], most: int, rank: int) -> tuple[list[TensorFile], int]:
    """What a rank that has written its plan sends, a checksum for every chunk, and how many there are."""
    chunks, told, number = [], [], 0
    for item in plan.items:
        view = tensors[item.index.fqn].views[item.index.offset]
        rows = [len(part) for part in divided(view, item.index.offset[0], most)]
        chunks += [((number + i) * most, most, f"{rank:08x}{number + i:08x}" * 4) for i in range(len(rows))]
        told.append(told_piece(item.index, number, list(view.shape[1:]), rows))
        number += len(rows)
    return [TensorFile(f"__{rank}_0.distcp", number * most, packed(chunks), packed(told), [])] if number else [], number


def save(world: int, most: int | None = None) -> dict:
    """Bytes that come to rank 0, and its seconds, in a first save and in one after it; `most`: of a chunk, in bytes, if not as it is."""
    sent = []
    for rank in range(world):
        planner = SavePlanner(KeptPlans())
        planner.set_up_planner(held(rank, world))
        sent.append(pickle.dumps(planner.create_local_plan()))
    kept, unchanged = KeptPlans(), [pickle.dumps(SavePlan([], usable=False))] * world
    plans, first = timed(lambda: plan(kept, sent))
    _, later = timed(lambda: plan(kept, unchanged))
    most = most or chunk_bytes(WHOLE)
    written, chunks = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for rank, one in enumerate(plans):
            found, count = results(one, held(rank, world), most, rank)
            written.append(pickle.dumps(found))
            chunks += count
            for file in found:
                with open(folder / file.name, "wb") as hole:  # as large as what it would hold, and without a byte on the disk
                    hole.truncate(file.bytes)
        _, finishing = timed(lambda: finish(folder, kept, written))
        listed = sum(file.stat().st_size for file in folder.glob("*.json"))
        slower, lost = beside(lambda: (plan(kept, unchanged), finish(folder, kept, written)))
    return {
        "chunk_bytes": most,
        "chunks": chunks,
        "plan_bytes": [sum(map(len, sent)), sum(map(len, unchanged))],
        "result_bytes": sum(map(len, written)),
        "listed_bytes": listed,
        "plan_seconds": [first, later],
        "finish_seconds": finishing,
        "step_beside_save": slower,
        "seconds_lost": lost,
    }


def plan(kept: KeptPlans, sent: list[bytes]) -> list[SavePlan]:
    """Rank 0's part of planning, from what came to what is sent back."""
    plans, _ = SavePlanner(kept).create_global_plan([pickle.loads(one) for one in sent])
    for one in plans:
        pickle.dumps(one)
    return plans


def finish(folder: Path, kept: KeptPlans, written: list[bytes]) -> None:
    """Rank 0's part when all have written, from what came to what torch sends back."""
    writer = Writer(folder, lambda: None, lambda files: seal(folder, {"step": 1}, files), 0)
    writer.finish(kept.metadata, [pickle.loads(one) for one in written])
    pickle.dumps(kept.metadata)


def beside(work: Callable[[], object]) -> tuple[float, float]:
    """How many times as long steps of a small network take while `work` goes on in a thread, and the seconds that they lose to it."""
    network, inputs = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(24))), torch.randn(512, 512)

    def steps(until: Callable[[int], bool]) -> tuple[int, float]:
        count, began = 0, time.perf_counter()
        while not until(count):
            network(inputs).sum().backward()
            count += 1
        return count, time.perf_counter() - began

    steps(lambda count: count == 5)
    alone = steps(lambda count: count == 20)[1] / 20
    (thread := threading.Thread(target=work)).start()
    count, seconds = steps(lambda count: count > 0 and not thread.is_alive())
    return seconds / count / alone, seconds - count * alone


def start(world: int) -> dict:
    """Groups that a rank makes, seconds for them, and seconds until all ranks have met at the store."""
    made, original = [], dist.new_group
    dist.init_process_group("fake", store=FakeStore(), rank=world // 2, world_size=world)
    dist.new_group = lambda ranks, **options: (made.append(ranks), original(ranks, **options))[1]
    try:
        grid, seconds = timed(lambda: make_grid(tensor=TENSOR))
        whole = {tuple(ranks) for name in vars(grid) if name != "shape" for ranks in grid.shape.slices(name)}
    finally:
        dist.new_group = original
        dist.destroy_process_group()
    return {"groups": len(made), "groups_of_all": len(whole), "group_seconds": seconds, "meeting_seconds": timed(lambda: meet(world))[1]}


def meet(world: int) -> None:
    """As in `parallel.meeting`: each rank tells the store its name, counts itself and asks for rank 0's word; rank 0 asks for the count."""
    server = dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)

    def speak(speaker: int) -> None:
        store = dist.TCPStore("127.0.0.1", server.port, None, False, timedelta(seconds=60))
        for rank in range(speaker, world, SPEAKERS):
            store.compare_set(str(rank), "", "here")
            store.add("count", 1)
            store.check(["everyone"])

    with ThreadPoolExecutor(SPEAKERS) as pool:
        list(pool.map(speak, range(SPEAKERS)))
    if server.add("count", 0) != world:
        raise RuntimeError("a rank was lost")


def timed(work: Callable[[], object]) -> tuple:
    """What it returns, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def lines(rows: list[dict]) -> Iterator[str]:
    """The table."""
    saves = "plans, first save | later | s | s | results | chunks | lists | s | steps | lost s"
    yield f"| ranks | groups of a rank (of all) | s | meeting s | {saves} |"
    yield "|" + " --- |" * 14
    for row in rows:
        mega = lambda count: f"{count / 2**20:.2f} MiB"  # noqa: E731
        yield (
            f"| {row['world']:,} | {row['groups']} ({row['groups_of_all']:,}) | {row['group_seconds']:.3f} | {row['meeting_seconds']:.2f} "
            f"| {mega(row['plan_bytes'][0])} | {mega(row['plan_bytes'][1])} | {row['plan_seconds'][0]:.2f} | {row['plan_seconds'][1]:.2f} "
            f"| {mega(row['result_bytes'])} | {row['chunks']:,} | {mega(row['listed_bytes'])} | {row['finish_seconds']:.2f} "
            f"| {row['step_beside_save']:.2f} | {row['seconds_lost']:.2f} |"
        )


def draw(rows: list[dict], picture: Path) -> None:
    """Bytes and seconds over the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = [row["world"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, (style, label) in enumerate((("o-", "plans of the first save"), ("o--", "plans of a later one"))):
        left.plot(worlds, [row["plan_bytes"][number] / 2**20 for row in rows], style, label=label)
        right.plot(worlds, [row["plan_seconds"][number] for row in rows], style, label=label)
    left.plot(worlds, [row["result_bytes"] / 2**20 for row in rows], "s-", label="results, with all checksums")
    for key, style, label in (("finish", "s-", "lists and seal"), ("group", "^-", "groups"), ("meeting", "v-", "meeting")):
        right.plot(worlds, [row[f"{key}_seconds"] for row in rows], style, label=label)
    for axes, title in ((left, "MiB that come to rank 0"), (right, "seconds")):
        axes.set(xscale="log", yscale="log", xlabel="ranks", title=title)
        axes.set_xticks(worlds, [f"{world:,}" for world in worlds])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Measure, print the table, write the JSON and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--picture", type=Path, default=Path("docs/scale.png"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scale.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"world": world, **start(world), **save(world)} for world in track(options.worlds)]
    print(*lines(rows), sep="\n")
    small = save(options.worlds[0], 1 << 20)
    results_MiB, lists_MiB = (small[key] >> 20 for key in ("result_bytes", "listed_bytes"))
    print(f"chunks of 1 MiB, {options.worlds[0]} ranks: {small['chunks']:,} chunks, results {results_MiB} MiB, lists {lists_MiB} MiB")
    write(options.output, {"model": MODEL.model_dump(mode="json"), "rows": rows, "chunks_of_1_MiB": small})
    draw(rows, options.picture)


if __name__ == "__main__":
    main()
