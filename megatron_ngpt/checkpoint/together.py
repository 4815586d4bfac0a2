"""Work on files that all ranks depend on: what fails on one rank fails on every rank, so that none waits for it for ever."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ngpt.errors import CheckpointError, ConfigError, DamagedError, NgptError

T = TypeVar("T")


def leads() -> bool:
    """This rank does what is done once for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def together(action: Callable[[], T], doing: str) -> T:
    """The result of `action` here, once every rank has run its own (collective over the world, a barrier).

    Raises:
        CheckpointError: on every rank, if it failed on any; one line that starts with `doing`.
        ConfigError, DamagedError: the same, as it was raised, for a user's mistake and for a damaged checkpoint.
    """
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    failures = [_told(error, doing)]
    if dist.is_initialized():
        failures *= dist.get_world_size()
        dist.all_gather_object(failures, _told(error, doing))
    for failure in failures:
        if failure is not None:
            raise failure from error
    return result


def on_first_rank(action: Callable[[], None], doing: str) -> None:
    """Rank 0 runs `action`, the others wait for it and share its failure (collective)."""
    together(action if leads() else lambda: None, doing)


def from_first_rank(action: Callable[[], T], doing: str) -> T:
    """What rank 0 found, on every rank; the others wait for it and share its failure (collective)."""
    found = [together(action if leads() else lambda: None, doing)]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Turns the exception that `torch.distributed.checkpoint` raises on every rank into the one that `together` would raise."""
    try:
        yield
    except CheckpointException as failed:
        errors = [failed.failures[rank][0] for rank in sorted(failed.failures)]
        error = next((e for e in errors if isinstance(e, DamagedError)), errors[0])
        raise _told(error, doing) from error


def _told(error: BaseException | None, doing: str) -> NgptError | None:
    """The error as every rank raises it."""
    if error is None or isinstance(error, (ConfigError, DamagedError)):
        return error
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    else:
        reason = str(error) if isinstance(error, (NgptError, OSError)) else f"{type(error).__name__}: {error}"
    return CheckpointError(f"{doing}: {reason}")
