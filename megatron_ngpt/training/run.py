"""From a checked recipe to a finished run: the log file and the watchdog first, so that all after them is told and watched, then the ranks,
then training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from megatron_ngpt.config.place import Place, read_place
from megatron_ngpt.errors import NgptError, RankError, ToldError
from megatron_ngpt.monitor.logs import configure_logging, log_path
from megatron_ngpt.training.preflight import Ready
from megatron_ngpt.watchdog import flight
from megatron_ngpt.watchdog.rank import Watch
from megatron_ngpt.watchdog.sections import END, MEETING, START, collective_seconds, meeting_seconds

LONGEST = 500  # characters of an error on the terminal; its log has all


def run(ready: Ready) -> int:
    """Train as the recipe says, on this rank; returns the exit status.

    Raises:
        NgptError: training could not go on; the message is one line for the user. ToldError: whom it concerns has read it already.
    """
    output, place = Path(ready.recipe.training.output), read_place(os.environ)
    with configure_logging(output, place.rank) as console, _watched(ready, place, console) as watch:
        return _train(ready, place, console, watch)


def _train(ready: Ready, place: Place, console: TextIO, watch: Watch) -> int:
    from megatron_ngpt.parallel.device import choose_device, start_process_group

    device, keys = choose_device(), ready.recipe.watchdog.model_dump()  # before DeepSpeed is imported
    import deepspeed  # noqa: F401  (seconds, which are none of the meeting's)

    watch.enter(MEETING)
    start_process_group(
        device,
        lambda line: print(line, file=console, flush=True),
        timedelta(seconds=meeting_seconds(keys)),
        timedelta(seconds=collective_seconds(keys)),
    )
    watch.enter(START)
    import torch.distributed as dist

    from megatron_ngpt.parallel.together import from_first_rank
    from megatron_ngpt.training.loop import Trainer

    if place.world > 1:
        watch.join(from_first_rank(watch.listen, "the watchdogs could not meet"), ready.grid.place(place.rank)["pipeline"])
    status = Trainer(ready, device, console, watch).train()
    watch.enter(END)
    dist.barrier()
    dist.destroy_process_group()
    return status


@contextmanager
def _watched(ready: Ready, place: Place, console: TextIO) -> Iterator[Watch]:
    """This rank has a watchdog. An error of this rank alone, a bug's say, is told on the terminal: the first one of all ranks."""
    output = Path(ready.recipe.training.output)
    log = log_path(output, place.rank)
    watch = Watch(
        ready.recipe.watchdog.model_dump(), place.rank, place.local_rank, place.world, output, log, console,
        flight.prepare(os.environ, log.parent, place.rank),
    )  # fmt: skip
    try:
        yield watch
    except Exception as error:
        if isinstance(error, NgptError) and not isinstance(error, RankError):  # every rank has it
            watch.leave()
            raise
        line = str(error) if isinstance(error, RankError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        watch.failed(line if len(line) <= LONGEST else line[:LONGEST] + " ...")
        raise ToldError(line) from error
    except BaseException:
        watch.leave()
        raise
    else:
        watch.leave()
