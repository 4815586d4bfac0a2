"""The ranks that share a model at work: how they meet, what they may divide, and how a batch goes through their parts.

Every rank runs the same program on the same text. Tensor ranks work on a layer together, pipeline stages hand hidden states on, and
what the last stage finds is told to all that share the model, so that each knows the next tokens without asking.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from megatron_ngpt.config.place import read_place, variables
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.errors import ConfigError
from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.parallel.collectives import all_gather
from megatron_ngpt.parallel.device import choose_device, start_process_group
from megatron_ngpt.parallel.grid import RankGrid, make_grid
from megatron_ngpt.parallel.together import leads

T = TypeVar("T")


@contextmanager
def joined(tensor: int = 1, pipeline: int = 1, context: int = 1) -> Iterator[RankGrid]:
    """The grid of the ranks that a launcher has started, together for as long as the context lasts; of this process without one.

    Raises:
        ConfigError: their number is no multiple of tensor · pipeline · context.
    """
    place, sizes = read_place(os.environ), {"tensor": tensor, "context": context, "pipeline": pipeline}
    if place.world % (product := math.prod(sizes.values())):
        options = {"tensor": "--tensor", "context": "--context_ranks", "pipeline": "--pipeline"}
        given = ", ".join(f"{options[axis]} = {size}" for axis, size in sizes.items() if size > 1 or axis != "context")
        raise ConfigError(
            f"{given}: their product {product} must divide the number of ranks, "
            f"{place.world}; start as many with torchrun --nproc_per_node {product} -m megatron_ngpt ..."
        )
    if place.world == 1:
        yield RankGrid()
        return
    os.environ.update(variables(place, os.environ))
    with redirect_stdout(sys.stderr):  # DeepSpeed's log would stand among the results
        start_process_group(choose_device(), lambda line: print(line, file=sys.stderr, flush=True))
    yield make_grid(**sizes)
    dist.barrier()
    dist.destroy_process_group()


def shown(parts: Sequence[T], what: str) -> Iterable[T]:
    """The parts, with a bar on rank 0 while a person is watching."""
    console = Console(stderr=True)
    return track(parts, what, console=console, transient=True, disable=not (leads() and console.is_terminal))


def check_layout(model: Model, grid: RankGrid) -> None:
    """Refuse a grid over which the model does not divide, all problems at once."""
    tensor, pipeline, problems = grid.tensor.size, grid.pipeline.size, []
    cut = {"heads": model.heads, "kv_heads": model.groups, "ffn": model.ffn_size}
    if any(size % tensor for size in cut.values()):
        valid = [n for n in range(1, model.groups + 1) if all(size % n == 0 for size in cut.values())]
        shown = ", ".join(f"{key} = {size}" for key, size in cut.items())
        problems.append(f"--tensor = {tensor}: must divide the model's {shown}; valid are {', '.join(map(str, valid))}")
    if pipeline > model.layers:
        problems.append(f"--pipeline = {pipeline}: more stages than the model has layers; valid are 1 to {model.layers}")
    if problems:
        raise ConfigError(*problems)


def context_kind(model: Model, grid: RankGrid) -> str:
    """How attention spans the context ranks: by heads where these divide, else in a ring."""
    return "ring" if model.heads // grid.tensor.size % grid.context.size else "ulysses"


def check_context(blueprint: Blueprint, context: int) -> None:
    """Refuse windows that do not divide over the context ranks."""
    runs = blueprint.grid.context.size * (2 if blueprint.context_kind == "ring" else 1)
    if blueprint.grid.context.size > 1 and context % runs:
        raise ConfigError(
            f"--context = {context}: must be a multiple of {runs} for --context_ranks = {blueprint.grid.context.size}; "
            f"choose {-(-context // runs) * runs}"
        )


def through_stages(module: Decoder, tokens_BT: torch.Tensor, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
    """`run` on each pipeline stage in turn.

    The first one's is given the tokens, each other one's the hidden states [B, T, D] that the one before returned. Returns what the
    last one's returned, there, and None on the stages before it.
    """
    blueprint, axis = module.blueprint, module.blueprint.grid.pipeline
    state = tokens_BT
    if not axis.first:
        shape = (*tokens_BT.shape, blueprint.model.hidden)
        state = torch.empty(shape, dtype=blueprint.residual_dtype, device=tokens_BT.device)
        dist.recv(state, group=axis.group, group_src=axis.before)
    state = run(state)
    if axis.last:
        return state
    dist.send(state.contiguous(), group=axis.group, group_dst=axis.after)
    return None


def from_last_stage(module: Decoder, found: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What the first tensor rank of the last stage found, on every rank that shares the model; others may give None."""
    grid = module.blueprint.grid
    if grid.model.size == 1:
        return found
    device = next(module.parameters()).device
    told = torch.empty(shape, dtype=dtype, device=device) if found is None else found.to(device, dtype).contiguous()
    finder = grid.shape.index("model", pipeline=grid.pipeline.size - 1)
    dist.broadcast(told, group=grid.model.group, group_src=finder)
    return told


def whole_vocabulary(module: Decoder, logits: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] of the whole vocabulary, from each tensor rank's share of it."""
    axis, vocabulary = module.blueprint.grid.tensor, module.blueprint.vocabulary
    if axis.size == 1:
        return logits
    missing = -(-vocabulary // axis.size) - logits.shape[-1]  # of a rank that holds padding
    return all_gather(F.pad(logits, (0, missing)), axis, -1)[..., :vocabulary]
