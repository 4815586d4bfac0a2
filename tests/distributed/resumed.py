"""Every layout resumes what every other saved: the layouts, and what is looked at on each rank right after loading."""

import functools
import json
from pathlib import Path

import torch

from tests.distributed.layouts import TIGHT, Layout, cut, spread, zero

BF16 = "data 2, bf16 ZeRO-1"
SAVED_AT, LAST = 10, 15
LAYOUTS = [
    *(Layout(f"data 2, ZeRO-{z}", 2, zero(z)) for z in range(4)),
    Layout("data 3, ZeRO-3, all cut", 3, {"deepspeed": TIGHT}),
    Layout("data 2, ZeRO-2, offload", 2, zero(2, offload=True)),
    Layout(BF16, 2, {"deepspeed": "ds_configs/bf16-zero1.json"}),
    Layout("tensor 2", 2, cut(2)),
    Layout("tensor 2 × data 2, hidden-sharded, ZeRO-3, all cut", 4, cut(2, hidden=True) | {"deepspeed": TIGHT}),
    Layout("pipeline 2", 2, cut(pipeline=2)),
    Layout("pipeline 2 × tensor 2 × data 2, ZeRO-1", 8, cut(2, 2, stage=1)),
    Layout("context 2 × data 2, ring, ZeRO-3, all cut", 4, spread("ring", 2) | {"deepspeed": TIGHT}),
    Layout("context 2 × tensor 2, ulysses, sequence, ZeRO-1", 4, spread("ulysses", 2, 2, sequence=True, stage=1)),
    *(Layout(f"gpt: data 2, ZeRO-{z}", 2, zero(z), "gpt") for z in range(4)),
    Layout("gpt: tensor 2, sequence", 2, cut(2, sequence=True), "gpt"),
    Layout("gpt: tensor 2 × data 2, hidden-sharded, ZeRO-2", 4, cut(2, hidden=True, stage=2), "gpt"),
    Layout("gpt: pipeline 2", 2, cut(pipeline=2), "gpt"),
    Layout("gpt: pipeline 2 × tensor 2 × data 2, ZeRO-1", 8, cut(2, 2, stage=1), "gpt"),
]
FEW = [LAYOUTS[number] for number in (2, 4, 8, 9, 11)]  # for every test run
SOURCES = [*FEW, *(LAYOUTS[number] for number in (14, 17, 18, 20))]  # of the heavy runs, with four of the baseline's


def look_after_loading(output: Path) -> None:
    """On a rank, before its run: let it write `loaded-RANK.json`, whether masters and moments are bit for bit what is stored, and the
    largest |‖w‖ − 1| of the stored rows that it holds a part of."""
    import torch.distributed as dist

    from megatron_ngpt.training.resume import Beginning

    original = getattr(Beginning.fill, "__wrapped__", Beginning.fill)

    @functools.wraps(original)
    def fill(self, engine):
        step = original(self, engine)
        problems, error = compare(self.found, engine.shards, engine.base)
        report = {"step": step, "problems": problems, "norm_error": error}
        (output / f"loaded-{dist.get_rank()}.json").write_text(json.dumps(report))
        return step

    Beginning.fill = fill


def compare(path: Path, shards: dict, optimizer) -> tuple[list[str], float]:
    """(what of this rank's masters and moments differs from the stored tensors, the largest norm error of spherical rows)."""
    from megatron_ngpt.checkpoint.dcp import StoredTensors
    from megatron_ngpt.checkpoint.pieces import MOMENTS

    stored = StoredTensors(path)
    problems, error = [], 0.0
    for name, shard in shards.items():
        wanted = stored.read(name)
        runs = {"weights": shard.master} | {key: shard.moment(optimizer, key) for key in MOMENTS}
        for kind, run in runs.items():
            whole = wanted if kind == "weights" else stored.read(name, kind)
            whole = whole.view(whole.shape[0], -1)
            for box in shard.boxes(run):
                if not torch.equal(box.values.cpu(), whole[box.rows, box.columns]):
                    problems.append(f"{kind}/{name} at {box.row}, {box.column}")
                if kind == "weights" and shard.spherical:
                    error = max(error, (whole[box.rows].double().norm(dim=1) - 1).abs().max().item())
    return problems, error
