"""What is measured of weights and gradients in the step that is watched: wherever masters lie, each number is counted once.

A rank adds what it has of a sum over entries (a squared gradient, a squared distance), so that rows which ZeRO or tensor ranks cut are
whole after the reduction that follows. Of each matrix's rows some are looked at, the same in every layout.
"""

import torch

from megatron_ngpt.config.parameters import ParameterRecord
from megatron_ngpt.monitor.sums import Sums
from megatron_ngpt.parallel.grid import RankGrid
from megatron_ngpt.parallel.shards import Box, Shard

ROWS = 256  # of a matrix are looked at, at most


def matrix_kind(record: ParameterRecord) -> str:
    """What a matrix is called among those of its kind in other layers: `q`, `down`, `embed_tokens`."""
    return record.name.removesuffix(".weight").split(".")[-1].removesuffix("_proj")


def gradient_kind(record: ParameterRecord) -> str:
    """What its gradient counts as."""
    return matrix_kind(record) if record.kind == "matrix" else f"{record.kind}s"


def stride(record: ParameterRecord) -> int:
    """Every how many rows one is looked at."""
    return -(-record.shape[0] // ROWS)


def weight_shapes(records: dict[str, ParameterRecord]) -> dict[str, tuple[int, ...]]:
    """The tensors that a `WeightWatch` adds to: squared gradients by kind, squared distances of rows, and the learned scales."""
    shapes: dict[str, tuple[int, ...]] = {f"gradient {gradient_kind(record)}": () for record in records.values()}
    shapes |= {f"moved {name}": (-(-r.shape[0] // stride(r)),) for name, r in records.items() if r.spherical}
    return shapes | {name: record.shape for name, record in records.items() if record.kind == "scale"}


class WeightWatch:
    """Looks at this rank's masters and gradients around the base optimiser's steps.

    Args:
        partitioned: replicas hold different numbers (ZeRO), not the same.
    """

    def __init__(self, shards: dict[str, Shard], grid: RankGrid, partitioned: bool):
        counts = partitioned or grid.replicas.first
        self._shards = [s for s in shards.values() if s.count and counts and (s.placement.sharded or grid.tensor.first)]
        self._rows = [(s, box) for s in self._shards if s.spherical for box in s.boxes(s.master)]
        self._before: dict[int, torch.Tensor] = {}

    @property
    def device(self) -> torch.device | None:
        """Where the masters are; None where this rank has none that count."""
        return self._shards[0].buffer.device if self._shards else None

    def before(self, base: torch.optim.Optimizer, sums: Sums) -> None:
        """Gradients as they come, and the rows, of what `base` is about to step."""
        stepped = _stepped(base)
        for shard in self._shards:
            if id(shard.buffer) in stepped and shard.buffer.grad is not None:
                gradient = shard.buffer.grad.view(-1)[shard.offset : shard.offset + shard.count]
                sums[f"gradient {gradient_kind(shard.placement.record)}"].add_(torch.linalg.vector_norm(gradient.float()).square())
        for number, (shard, box) in enumerate(self._rows):
            if id(shard.buffer) in stepped:
                self._before[number] = _looked_at(shard, box)[1].clone()

    def after(self, base: torch.optim.Optimizer, sums: Sums) -> None:
        """How far those rows have come, back on the sphere."""
        stepped = _stepped(base)
        for number, (shard, box) in enumerate(self._rows):
            if id(shard.buffer) in stepped:
                places, rows = _looked_at(shard, box)
                sums[f"moved {shard.name}"][places] += (rows - self._before.pop(number)).square().sum(1)

    def scales(self, sums: Sums) -> None:
        """The learned scales as they are stored."""
        for shard in self._shards:
            if shard.name in sums:
                whole = sums[shard.name].view(shard.placement.shape[0], -1)
                for box in shard.boxes(shard.master):
                    whole[box.rows, box.columns] += box.values


def _stepped(base: torch.optim.Optimizer) -> set[int]:
    """What the optimiser holds at this moment: ZeRO steps a part at a time."""
    return {id(p) for group in base.param_groups for p in group["params"]}


def _looked_at(shard: Shard, box: Box) -> tuple[slice, torch.Tensor]:
    """(places among the rows that are looked at, views of them)"""
    every = stride(shard.placement.record)
    first = -box.row % every
    rows = box.values[first::every]
    place = (box.row + first) // every
    return slice(place, place + len(rows)), rows
