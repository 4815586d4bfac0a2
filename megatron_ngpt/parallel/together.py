"""Work on files that all ranks depend on: what fails on one rank fails on every rank, so that none waits for it for ever."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_ngpt.errors import ConfigError, DamagedError, NgptError

T = TypeVar("T")


def leads() -> bool:
    """This rank does what is done once for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def together(action: Callable[[], T], doing: str) -> T:
    """The result of `action` here, once every rank has run its own (collective over the world, a barrier).

    Raises:
        NgptError: on every rank, if it failed on any; one line that starts with `doing`, of the kind that was raised.
        ConfigError, DamagedError: the same, as it was raised, for a user's mistake and for a damaged checkpoint.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    failures = [told(error, doing)]
    if dist.is_initialized() and _any(error is not None):
        failures *= dist.get_world_size()
        dist.all_gather_object(failures, told(error, doing))
    for failure in failures:
        if failure is not None:
            raise failure from error
    return result


def _any(failed: bool) -> bool:
    """Whether it is so on any rank: one number, where what they say grows with their count."""
    found = torch.tensor([float(failed)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def on_first_rank(action: Callable[[], None], doing: str) -> None:
    """Rank 0 runs `action`, the others wait for it and share its failure (collective)."""
    together(action if leads() else lambda: None, doing)


def from_first_rank(action: Callable[[], T], doing: str) -> T:
    """What rank 0 found, on every rank; the others wait for it and share its failure (collective)."""
    found = [together(action if leads() else lambda: None, doing)]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


def told(error: BaseException | None, doing: str, kind: type[NgptError] = NgptError) -> NgptError | None:
    """The error as every rank raises it; of `kind` where it is none of the project's own."""
    if error is None or isinstance(error, (ConfigError, DamagedError)):
        return error
    if isinstance(error, NgptError):
        return type(error)(f"{doing}: {error}")
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return kind(f"{doing}: {error.strerror}{where}" if error.strerror else f"{doing}: {error}")
    return kind(f"{doing}: {type(error).__name__}: {error}")
