"""What a rank holds of the global tensors, in the words of `torch.distributed.checkpoint`: pieces, and the plans to move them.

Replicas are chunks with one place in the tensor, and are written once; vocabulary padding lies outside the tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_ngpt.errors import CheckpointError
from megatron_ngpt.parallel.shards import Shard

WEIGHTS = "weights"
MOMENTS = ("exp_avg", "exp_avg_sq")
CHUNK_BYTES = 1 << 20  # most of a stored chunk, which a reader takes whole: at the ends of its boxes it reads at most so much too much
CHUNKS = 1 << 14  # of a checkpoint whose tensors are one box each, at most; beyond, chunks are larger, so that lists of them are not
AS_GIVEN = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


@dataclass(frozen=True)
class Pieces:
    """What this rank holds of one global tensor: views of it, by their offset in the tensor."""

    shape: torch.Size
    views: dict[torch.Size, torch.Tensor]


def chunk_bytes(state_dict: dict[str, Pieces]) -> int:
    """Most of a stored chunk where a checkpoint holds these fp32 tensors, of which a rank has pieces: a power of two."""
    total = sum(4 * held.shape.numel() for held in state_dict.values())
    return max(CHUNK_BYTES, 1 << max(0, -(-total // CHUNKS) - 1).bit_length())


def divided(view: torch.Tensor, row: int, most: int) -> Iterator[torch.Tensor]:
    """A view that starts at `row` of its tensor, cut between rows into parts of at most `most` bytes (or of one row).

    All cuts are at multiples of one power of two of the tensor's rows, where most other layouts cut it too.
    """
    fitting = most * len(view) // view.nbytes
    step = 1 << max(0, fitting.bit_length() - 1)
    first, end = row, row + len(view)
    while row < end:
        following = min(end, row - row % step + step)
        yield view[row - first : following - first]
        row = following


def pieces(shard: Shard, run: torch.Tensor) -> Pieces:
    """The boxes of `run` (a shard's master or moment)."""
    views = {}
    for box in shard.boxes(run):
        if len(shard.placement.shape) == 1:
            views[torch.Size((box.row,))] = box.values.view(-1)
        else:
            views[torch.Size((box.row, box.column))] = box.values
    return Pieces(torch.Size(shard.placement.shape), views)


def held_tensors(shards: dict[str, Shard], optimizer: torch.optim.Optimizer | None) -> dict[str, Pieces]:
    """Everything this rank holds, by its name in the checkpoint; before a first step there are no moments."""
    tensors = {f"{WEIGHTS}/{name}": pieces(shard, shard.master) for name, shard in shards.items()}
    if optimizer is not None and optimizer.state:
        for key in MOMENTS:
            tensors |= {f"{key}/{name}": pieces(shard, shard.moment(optimizer, key)) for name, shard in shards.items()}
    return tensors


@dataclass
class KeptPlans:
    """What a rank's saves know from those before. Where no rank's pieces have changed since, no plan is sent and none is made.

    Attributes:
        sent, received: this rank's plan as rank 0 has it, and what rank 0 made of it; both or neither.
        everyone, metadata: on rank 0, every rank's plan as it was sent, and the shapes of all tensors. torch sends the metadata to
            every rank after every save, so it is without what grows with the ranks.
    """

    sent: SavePlan | None = None
    received: SavePlan | None = None
    everyone: list[SavePlan] = field(default_factory=list)
    metadata: Metadata | None = None


class SavePlanner(DefaultSavePlanner):
    """Writes the pieces; the default planner drops replicas and refuses tensors that are not covered exactly once.

    An item is a whole view: the chunks into which it is cut are the business of the rank that writes it, so that what rank 0 plans
    grows with the parameters and ranks, and not with the bytes. The default planner's cache of plans is the class's, one for all savers,
    and after a save that failed between plan and writing it looks for plans that ranks never got; so `kept` is ours.
    """

    def __init__(self, kept: KeptPlans):
        super().__init__(**AS_GIVEN)
        self._kept = kept

    def create_local_plan(self) -> SavePlan:
        self._own = SavePlan([item for name, held in self.state_dict.items() for item in _write_items(name, held)])
        if self._own == self._kept.sent:
            return SavePlan([], usable=False)
        self._kept.sent = self._kept.received = None  # until this one has come back
        return self._own

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        if any(plan.usable for plan in all_plans):
            before = self._kept.everyone or all_plans
            self._kept.everyone = [new if new.usable else old for new, old in zip(all_plans, before, strict=True)]
            all_plans, whole = self._create_global_plan(self._kept.everyone)
            self._kept.metadata = _without_chunks(whole)
        return all_plans, self._kept.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        if new_plan.usable:
            self._kept.sent, self._kept.received = self._own, new_plan
        return self._kept.received

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].views[index.offset]


def _without_chunks(metadata: Metadata) -> Metadata:
    return Metadata({name: replace(tensor, chunks=[]) for name, tensor in metadata.state_dict_metadata.items()})


def _write_items(name: str, held: Pieces) -> list[WriteItem]:
    return [
        WriteItem(
            index=MetadataIndex(name, offset),
            type=WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                ChunkStorageMetadata(offset, view.size()), TensorProperties.create_from_tensor(view), held.shape
            ),
        )
        for offset, view in held.views.items()
    ]


class LoadPlanner(DefaultLoadPlanner):
    """Reads into the pieces, in place, and refuses a checkpoint of another model.

    What a rank reads stays with it: the plan that rank 0 sees names the tensors only.
    """

    def set_up_planner(self, state_dict: dict, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        stored, items = self.metadata.state_dict_metadata, []
        for name, held in self.state_dict.items():
            if name not in stored:
                raise CheckpointError(f"it holds no {name}, which has shape {list(held.shape)} in the model")
            if stored[name].size != held.shape:
                raise CheckpointError(f"{name} has shape {list(stored[name].size)} in it, {list(held.shape)} in the model")
            chunks = [ChunkStorageMetadata(offset, view.size()) for offset, view in held.views.items()]
            items += create_read_items_for_chunk_list(name, stored[name], chunks)
        self._items = items
        return LoadPlan([], planner_data=list(self.state_dict))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        known = {name for plan in global_plan for name in plan.planner_data}
        for name, stored in self.metadata.state_dict_metadata.items():
            if name.startswith(f"{WEIGHTS}/") and name not in known:
                raise CheckpointError(f"{name} of shape {list(stored.size)} in it is not in the model")
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return LoadPlan(self._items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].views[index.offset]
