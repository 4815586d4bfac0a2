"""Checkpoints without a layout: `torch.distributed.checkpoint` on the shards map.

Every box that a rank's master or moment covers is a part of a global tensor: `weights/NAME`, `exp_avg/NAME` or `exp_avg_sq/NAME`. So
any layout, or one process without a process group, reads what any other wrote, and nothing is converted. Matrices and scales are as
they are stored in memory.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ngpt.checkpoint.pieces import AS_GIVEN, WEIGHTS, LoadPlanner, Pieces, held_tensors
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.checkpoint.storage import Reader
from megatron_ngpt.errors import CheckpointError, DamagedError
from megatron_ngpt.parallel.shards import Shard, make_moments
from megatron_ngpt.parallel.together import together, told

log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")  # one process, as meant


def load(path: Path, shards: dict[str, Shard], base_optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Fill the masters, and an optimizer's moments, from a checkpoint directory of any layout; returns its state (collective).

    A rank reads the stored chunks that its own boxes touch, and checks them. The caller publishes the masters.

    Raises:
        DamagedError: on every rank; the checkpoint is not as it was written. Masters may be filled in part.
        CheckpointError: on every rank; the checkpoint holds other parameters or shapes than the model.
    """
    doing = f"checkpoint {path} could not be read"
    state, reader = together(lambda: (read_state(path), Reader(path)), doing)
    optimizer = base_optimizer if state["step"] > 0 else None
    if optimizer is not None:
        make_moments(optimizer, shards, state["step"] - state.get("vetoed", 0))
    tensors = held_tensors(shards, optimizer)
    with one_line(doing):
        dcp.load(tensors, storage_reader=reader, planner=LoadPlanner(**AS_GIVEN), no_dist=not dist.is_initialized())
    held = sum(view.nbytes for piece in tensors.values() for view in piece.views.values())
    log.info("checkpoint %s: read %d bytes for a share of %d", path, reader.bytes_read, held)
    return state


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Turns the exception that `torch.distributed.checkpoint` raises on every rank into a CheckpointError as `together` would tell it."""
    try:
        yield
    except CheckpointException as failed:
        errors = [failed.failures[rank][0] for rank in sorted(failed.failures)]
        error = next((e for e in errors if isinstance(e, DamagedError)), errors[0])
        raise told(error, doing, CheckpointError) from error


class StoredTensors:
    """The global tensors of a checkpoint directory, whole and one at a time, for one process.

    `names` are the parameters'; `state` is the checkpoint's.
    """

    def __init__(self, path: Path):
        self.state = read_state(path)
        self._reader = Reader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.names = [n.removeprefix(f"{WEIGHTS}/") for n in self._metadata.state_dict_metadata if n.startswith(f"{WEIGHTS}/")]

    def shape(self, name: str) -> tuple[int, ...]:
        """A parameter's shape."""
        return tuple(self._metadata.state_dict_metadata[f"{WEIGHTS}/{name}"].size)

    def read(self, name: str, kind: str = WEIGHTS) -> torch.Tensor:
        """A parameter's weights (or moment, `exp_avg` or `exp_avg_sq`) as they are stored, fp32 on the CPU. Raises DamagedError."""
        values = torch.empty(self.shape(name))
        whole = Pieces(values.size(), {torch.Size([0] * values.dim()): values})
        planner = LoadPlanner(**AS_GIVEN)
        planner.set_up_planner({f"{kind}/{name}": whole}, self._metadata, is_coordinator=True)
        self._reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
        return values
