"""Checkpoints without a layout: `torch.distributed.checkpoint` on the shards map.

Every box that a rank's master or moment covers is a chunk of a global tensor: `weights/NAME`, `exp_avg/NAME` or
`exp_avg_sq/NAME`. Replicas are chunks with one place in the tensor, and are written once; vocabulary padding lies outside the
tensor. So any layout, or one process without a process group, reads what any other wrote, and nothing is converted. Matrices
and scales are as they are stored in memory.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ngpt.checkpoint.files import PARTIAL, publish, read_state, remove, write_state
from megatron_ngpt.checkpoint.together import leads, on_first_rank, one_line, together
from megatron_ngpt.errors import CheckpointError
from megatron_ngpt.parallel.shards import Shard, make_moments

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
_AS_GIVEN = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


@dataclass(frozen=True)
class Pieces:
    """What this rank holds of one global tensor: views of it, by their offset in the tensor."""

    shape: torch.Size
    views: dict[torch.Size, torch.Tensor]

    def chunks(self) -> list[ChunkStorageMetadata]:
        """Where the views lie, as `torch.distributed.checkpoint` says it."""
        return [ChunkStorageMetadata(offset, view.size()) for offset, view in self.views.items()]


def pieces(shard: Shard, run: torch.Tensor) -> Pieces:
    """The boxes of `run` (a shard's master or moment)."""
    views = {}
    for box in shard.boxes(run):
        if len(shard.placement.shape) == 1:
            views[torch.Size((box.row,))] = box.values.view(-1)
        else:
            views[torch.Size((box.row, box.column))] = box.values
    return Pieces(torch.Size(shard.placement.shape), views)


def save(path: Path, shards: dict[str, Shard], base_optimizer: torch.optim.Optimizer | None, state: dict) -> None:
    """Write a checkpoint directory at `path` (collective over the world, if there is a process group).

    It appears under its name when every rank has written and everything is on the disk; what was there before is replaced.

    Args:
        state: what JSON can hold, `step` among it; rank 0's is written.

    Raises:
        CheckpointError: on every rank; nothing is left of the attempt, and what was at `path` is still there.
    """
    doing = f"checkpoint {path} could not be written"
    partial = path.with_name(path.name + PARTIAL)

    def prepare() -> None:
        remove(partial)
        partial.mkdir(parents=True)

    def finish() -> None:
        write_state(partial, state)
        publish(partial, path)

    try:
        on_first_rank(prepare, doing)
        with one_line(doing), _quiet():
            dcp.save(
                _tensors(shards, base_optimizer),
                storage_writer=FileSystemWriter(partial),
                planner=_SavePlanner(**_AS_GIVEN),
                no_dist=not dist.is_initialized(),
            )
        on_first_rank(finish, doing)
    except CheckpointError:
        if leads():
            shutil.rmtree(partial, ignore_errors=True)
        raise


def load(path: Path, shards: dict[str, Shard], base_optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Fill the masters, and an optimizer's moments, from a checkpoint directory of any layout; returns its state (collective).

    A rank reads the stored chunks that its own boxes touch. The caller publishes the masters.

    Raises:
        CheckpointError: on every rank; the checkpoint is not complete, or holds other parameters or shapes than the model.
    """
    doing = f"checkpoint {path} could not be read"
    state = together(lambda: read_state(path), doing)
    optimizer = base_optimizer if state["step"] > 0 else None
    if optimizer is not None:
        make_moments(optimizer, shards, state["step"])
    with one_line(doing), _quiet():
        dcp.load(
            _tensors(shards, optimizer),
            storage_reader=FileSystemReader(path),
            planner=_LoadPlanner(**_AS_GIVEN),
            no_dist=not dist.is_initialized(),
        )
    return state


class StoredTensors:
    """The global tensors of a checkpoint directory, whole and one at a time, for one process.

    `names` are the parameters'; `state` is the checkpoint's.
    """

    def __init__(self, path: Path):
        self.state = read_state(path)
        self._reader = FileSystemReader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.names = [n.removeprefix(f"{WEIGHTS}/") for n in self._metadata.state_dict_metadata if n.startswith(f"{WEIGHTS}/")]

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape."""
        return tuple(self._metadata.state_dict_metadata[f"{WEIGHTS}/{name}"].size)

    def read(self, name: str) -> torch.Tensor:
        """A parameter's weights as they are stored, fp32 on the CPU."""
        values = torch.empty(self.shape(name))
        whole = Pieces(values.size(), {torch.Size([0] * values.dim()): values})
        planner = _LoadPlanner(**_AS_GIVEN)
        planner.set_up_planner({f"{WEIGHTS}/{name}": whole}, self._metadata, is_coordinator=True)
        self._reader.read_data(planner.create_local_plan(), planner).wait()
        return values


def _tensors(shards: dict[str, Shard], optimizer: torch.optim.Optimizer | None) -> dict[str, Pieces]:
    """Everything this rank holds, by its name in the checkpoint; before a first step there are no moments."""
    tensors = {f"{WEIGHTS}/{name}": pieces(shard, shard.master) for name, shard in shards.items()}
    if optimizer is not None and optimizer.state:
        for key in MOMENTS:
            tensors |= {f"{key}/{name}": pieces(shard, shard.moment(optimizer, key)) for name, shard in shards.items()}
    return tensors


@contextmanager
def _quiet() -> Iterator[None]:
    """A save or load of one process without a process group is meant, and needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


class _SavePlanner(DefaultSavePlanner):
    """Writes the pieces; the default planner drops replicas and refuses tensors that are not covered exactly once."""

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([item for name, held in self.state_dict.items() for item in _write_items(name, held)])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].views[index.offset]


def _write_items(name: str, held: Pieces) -> list[WriteItem]:
    return [
        WriteItem(
            index=MetadataIndex(name, chunk.offsets),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(chunk, TensorProperties.create_from_tensor(held.views[chunk.offsets]), held.shape),
        )
        for chunk in held.chunks()
    ]


class _LoadPlanner(DefaultLoadPlanner):
    """Reads into the pieces, in place, and refuses a checkpoint of another model."""

    def set_up_planner(self, state_dict: dict, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        stored, items = self.metadata.state_dict_metadata, []
        for name, held in self.state_dict.items():
            if name not in stored:
                raise CheckpointError(f"it holds no {name}, which has shape {list(held.shape)} in the model")
            if stored[name].size != held.shape:
                raise CheckpointError(f"{name} has shape {list(stored[name].size)} in it, {list(held.shape)} in the model")
            items += create_read_items_for_chunk_list(name, stored[name], held.chunks())
        return LoadPlan(items, planner_data=list(self.state_dict))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        known = {name for plan in global_plan for name in plan.planner_data}
        for name, stored in self.metadata.state_dict_metadata.items():
            if name.startswith(f"{WEIGHTS}/") and name not in known:
                raise CheckpointError(f"{name} of shape {list(stored.size)} in it is not in the model")
        return global_plan

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].views[index.offset]
