"""Ranks of many layouts without an engine: their shards, made by hand as tensor, data and pipeline parallelism make them."""

import socket
import traceback
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ngpt.config.recipe import Model
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.parallel.grid import Axis, RankGrid
from megatron_ngpt.parallel.shards import Shard, make_moments, shards_of

VOCABULARY = 33  # divides over neither two nor four ranks
MODEL = Model(layers=2, hidden=8, heads=4, kv_heads=2, ffn=12, context=16)


@dataclass(frozen=True)
class Layout:
    """A recipe's layout; `partition`: the data ranks cut one flat buffer, as ZeRO does, else they hold replicas."""

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    partition: bool = False
    model: Model = MODEL

    @property
    def ranks(self) -> int:
        return self.tensor * self.data * self.pipeline


def build(layout: Layout, rank: int) -> tuple[dict[str, Shard], torch.optim.Optimizer]:
    """The shards of one rank and an optimizer that steps their buffers."""
    t, rest = rank % layout.tensor, rank // layout.tensor
    d, p = rest % layout.data, rest // layout.data
    module = Decoder(Blueprint(layout.model, VOCABULARY, RankGrid(tensor=Axis(t, layout.tensor))))
    shards = shards_of(module)
    first, last = p * layout.model.layers // layout.pipeline, (p + 1) * layout.model.layers // layout.pipeline
    names = []
    for number, layer in enumerate(module.layers):
        stage = first <= max(0, min(number - 1, layout.model.layers - 1)) < last
        names += [parameter.placement.record.name for parameter in layer.parameters() if stage]
    shards = {name: shards[name] for name in names}
    if layout.partition:
        shards = cut(shards, d, layout.data)
    buffers = {id(s.buffer): s.buffer for s in shards.values() if s.count}.values()
    optimizer = torch.optim.AdamW(list(buffers) or [torch.zeros(1)])
    optimizer.fill = lambda seed: initialise(shards, seed)
    return shards, optimizer


def cut(shards: dict[str, Shard], rank: int, ranks: int) -> dict[str, Shard]:
    """Each shard's part in this rank's equal partition of all of them, end to end."""
    total = sum(s.count for s in shards.values())
    size = -(-total // ranks)
    buffer = torch.nn.Parameter(torch.zeros(size))
    found, at = {}, 0
    for name, shard in shards.items():
        start, stop = max(at, rank * size), min(at + shard.count, (rank + 1) * size)
        count = max(0, stop - start)
        place = (start - at, count, buffer, start - rank * size) if count else (0, 0, None, 0)
        found[name] = replace(shard, **dict(zip(("start", "count", "buffer", "offset"), place, strict=True)))
        at += shard.count
    return found


def fill(shards: dict[str, Shard], optimizer, seed: int, step: int) -> None:
    """Weights and moments that depend on the seed and their places in the global tensors alone."""
    optimizer.fill(seed)
    for shard in shards.values():
        for box in shard.boxes(shard.master):  # scales start as constants, among which a wrong place would not show
            rows = torch.arange(box.rows.start, box.rows.stop).unsqueeze(1)
            box.values.add_(0.01 * rows + 0.001 * torch.arange(box.columns.start, box.columns.stop))
    if step:
        make_moments(optimizer, shards, step)
        for shard in shards.values():
            with torch.no_grad():
                shard.moment(optimizer, "exp_avg").copy_(shard.master * 3)
                shard.moment(optimizer, "exp_avg_sq").copy_(shard.master.square())


def differences(shards: dict[str, Shard], optimizer, seed: int, layout: Layout, rank: int) -> list[str]:
    """What is not bit for bit as `fill` made it."""
    wanted, other = build(layout, rank)
    fill(wanted, other, seed, step=1)
    found = []
    for name, shard in shards.items():
        pairs = {"weights": (shard.master, wanted[name].master)}
        for key in ("exp_avg", "exp_avg_sq"):
            pairs[key] = shard.moment(optimizer, key), wanted[name].moment(other, key)
        for key, (have, want) in pairs.items():
            for mine, theirs in zip(shard.boxes(have), wanted[name].boxes(want), strict=True):
                if not torch.equal(mine.values, theirs.values):
                    found.append(f"{key}/{name} at ({mine.row}, {mine.column})")
    return found


def run_ranks(ranks: int, function, *arguments) -> list:
    """What `function(rank, *arguments)` returned on each of `ranks` processes of one gloo group."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.checkpoint.layouts", "megatron_ngpt.checkpoint.store"])
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=_rank, args=(r, ranks, port, results, function, arguments)) for r in range(ranks)]
    for process in started:
        process.start()
    answers = dict(results.get() for _ in started)
    for process in started:
        process.join()
    failed = [answer for answer in answers.values() if isinstance(answer, str) and answer.startswith("Traceback")]
    assert not failed, failed[0]
    return [answers[rank] for rank in range(ranks)]


def _rank(rank: int, ranks: int, port: int, results, function, arguments) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    try:
        results.put((rank, function(rank, *arguments)))
        dist.barrier()
    except BaseException:
        results.put((rank, traceback.format_exc()))
    finally:
        dist.destroy_process_group()
