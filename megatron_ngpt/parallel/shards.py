"""What this rank holds of every parameter, under every DeepSpeed optimiser.

Nothing else in the project knows where DeepSpeed keeps its fp32 masters. Tensor parallelism leaves a rank a box of the global tensor
(`Placement`), ZeRO a contiguous run of that box, flattened. The run lies in a buffer that the base optimiser steps: the parameter
itself (no ZeRO), or a flat partition of a parameter group (`DeepSpeedZeroOptimizer`, `BF16_Optimizer`,
`DeepSpeedZeroOptimizer_Stage3`). The master is a slice of the buffer, the gradient the same slice of its `.grad`, a moment the same
slice of the base optimiser's state.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from megatron_ngpt.parallel.placement import Placement


@dataclass(frozen=True)
class Box:
    """A rectangle of the global tensor, and this rank's numbers of it.

    Attributes:
        row, column: where it starts in the global tensor (a tensor of one dimension counts as one column).
        values: fp32 view of shape [rows, columns]; writing to it writes to the master or moment.
    """

    row: int
    column: int
    values: torch.Tensor

    @property
    def rows(self) -> slice:
        """The rows covered, in the global tensor."""
        return slice(self.row, self.row + self.values.shape[0])

    @property
    def columns(self) -> slice:
        """The columns covered, in the global tensor."""
        return slice(self.column, self.column + self.values.shape[1])


@dataclass(frozen=True, eq=False)
class Shard:
    """The run of one parameter that this rank owns.

    Attributes:
        start: where the run starts in the flattened local tensor.
        count: its length; 0 where this rank owns nothing of the parameter.
        buffer: the tensor that the base optimiser steps.
        offset: where the run starts in the buffer.
        group: which of `stepped_buffers` the buffer belongs to.
    """

    placement: Placement
    start: int
    count: int
    buffer: torch.Tensor | None
    offset: int
    group: int

    @property
    def name(self) -> str:
        """The parameter's name, the same in every layout."""
        return self.placement.record.name

    @property
    def spherical(self) -> bool:
        """The rows of the global tensor are unit vectors."""
        return self.placement.record.spherical

    def _run(self, flat: torch.Tensor | None) -> torch.Tensor:
        if self.count == 0:
            return torch.empty(0)
        return flat.detach().view(-1)[self.offset : self.offset + self.count]

    @property
    def master(self) -> torch.Tensor:
        """1-D fp32 view of the weights."""
        return self._run(self.buffer)

    def moment(self, optimizer: torch.optim.Optimizer, key: str) -> torch.Tensor:
        """1-D view of the moment `key` (`exp_avg`, `exp_avg_sq`); exists after a first step or `make_moments`."""
        return self._run(optimizer.state[self.buffer][key] if self.count else None)

    def boxes(self, run: torch.Tensor) -> list[Box]:
        """`run` (the master or a moment) as at most three rectangles of the global tensor, without vocabulary padding."""
        columns = self.placement.local[1] if len(self.placement.local) == 2 else 1
        row_offset = self.placement.offset[0]
        column_offset = self.placement.offset[1] if len(self.placement.local) == 2 else 0
        found = []
        for row, column, rows, width, at in rectangles(self.start, self.count, columns):
            kept = min(rows, self.placement.shape[0] - row_offset - row)
            if kept > 0:
                values = run[at : at + rows * width].view(rows, width)[:kept]
                found.append(Box(row + row_offset, column + column_offset, values))
        return found


def rectangles(start: int, count: int, columns: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(row, column, rows, width, position in the run) of the rectangles that a run of a row-major [*, columns] tensor covers:
    the end of a row, whole rows, the start of a row."""
    at, end = start, start + count
    while at < end:
        row, column = divmod(at, columns)
        if column or end - at < columns:
            rows, width = 1, min(columns - column, end - at)
        else:
            rows, width = (end - at) // columns, columns
        yield row, column, rows, width, at - start
        at += rows * width


def shards_of(module: nn.Module | Iterable[nn.Parameter], optimizer=None) -> dict[str, Shard]:
    """Every parameter's shard on this rank, by name.

    Args:
        module: the model, or some of its parameters, which carry their `placement`.
        optimizer: what `deepspeed.initialize` returned as its optimizer; None for a model without one (inference). What this assumes of
            it `assumptions.checked_shards` asserts.
    """
    parameters = module.parameters() if isinstance(module, nn.Module) else module
    shards = (Shard(parameter.placement, *_locate(parameter, optimizer)) for parameter in parameters)
    return {shard.name: shard for shard in shards}


def stepped_buffers(optimizer) -> list[torch.Tensor] | None:
    """The flat fp32 partitions that DeepSpeed hands to the base optimiser; None where it steps the parameters themselves.

    ZeRO-1/2 and ZeRO-3 call the base optimiser once for each of them, `BF16_Optimizer` once for all.
    """
    for held in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, held):
            return getattr(optimizer, held)
    return None


_NOTHING = (0, 0, None, 0, 0)


def _locate(parameter: nn.Parameter, optimizer) -> tuple[int, int, torch.Tensor | None, int, int]:
    """(start, count, buffer, offset, group) of `Shard` for one parameter."""
    if hasattr(parameter, "ds_id"):
        return _locate_stage3(parameter)
    if not hasattr(parameter, "_hp_mapping"):
        return 0, parameter.numel(), parameter, 0, 0
    fragment = parameter._hp_mapping
    if fragment is None:  # ZeRO-1/2 and BF16_Optimizer: other ranks hold all of it
        return _NOTHING
    where, group = fragment.get_hp_fragment_address(), fragment.param_group_index
    return fragment.lp_fragment_address.start, where.numel, stepped_buffers(optimizer)[group], where.start, group


def _locate_stage3(parameter: nn.Parameter) -> tuple[int, int, torch.Tensor | None, int, int]:
    """ZeRO-3 cuts every parameter into equal partitions, the last of them padded."""
    optimizer = parameter._z3_optimizer
    group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank(parameter.ds_process_group) * parameter.ds_tensor.ds_numel
    count = max(0, min(parameter.ds_tensor.ds_numel, parameter.ds_numel - start))
    if count == 0:
        return _NOTHING
    return start, count, optimizer.fp32_partitioned_groups_flat[group], offset, group


def publish_masters(optimizer) -> None:
    """Copy the masters to the weights that the forward pass uses (collective over the data ranks under ZeRO-1/2 and 3)."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:  # small parameters that ZeRO-3 keeps gathered
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()


def make_moments(optimizer: torch.optim.Optimizer, shards: dict[str, Shard], updates: int) -> None:
    """Adam's state for every buffer as it is after so many `updates`, moments zero, ready to be loaded into; in the memory of those that
    are there."""
    for buffer in {id(s.buffer): s.buffer for s in shards.values() if s.count}.values():
        state = optimizer.state[buffer]
        state["step"] = torch.tensor(float(updates), device=buffer.device if optimizer.defaults.get("fused") else "cpu")
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = state[key].zero_() if key in state else torch.zeros_like(buffer, memory_format=torch.preserve_format)
