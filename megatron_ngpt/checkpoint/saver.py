"""Saving while training goes on: training waits until its shards are copied, and no longer."""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ngpt.checkpoint.catalogue import NOT_FINITE
from megatron_ngpt.checkpoint.dcp import one_line
from megatron_ngpt.checkpoint.files import PARTIAL, publish, remove, write_bytes
from megatron_ngpt.checkpoint.pieces import MOMENTS, WEIGHTS, KeptPlans, Pieces, SavePlanner, chunk_bytes, held_tensors, pieces
from megatron_ngpt.checkpoint.seal import TensorFile, seal
from megatron_ngpt.checkpoint.storage import Writer
from megatron_ngpt.errors import CheckpointError, NgptError, NotFiniteError
from megatron_ngpt.parallel.shards import Shard
from megatron_ngpt.parallel.together import leads

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
RETRY = 5.0  # seconds between two tries of a save that waits for room
PATIENCE = 600.0  # seconds that it waits at most


@dataclass(frozen=True)
class Saved:
    """How a save went.

    Attributes:
        path: the checkpoint's directory.
        step: what it is of.
        stall: seconds that the caller waited: for the copy, and where it needed the save to be over, for the rest.
        seconds: from the start of the save to its end.
        error: what kept it from being written; None if it is there.
    """

    path: Path
    step: int
    stall: float
    seconds: float
    error: CheckpointError | None


@dataclass(frozen=True)
class Directory:
    """What a save may ask of the directory that it writes in; all of it on rank 0, in the thread.

    Attributes:
        check: before anything is written or removed; raises NgptError where this run may not.
        make_room: when the disk is full; returns whether anything was removed.
        say: tells a person a line.
        published: the checkpoint has its name; raises nothing.
    """

    check: Callable[[], None] = lambda: None
    make_room: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda _: None
    published: Callable[[], None] = lambda: None


class Stager:
    """Copies pieces to host memory of its own, which is kept from one save to the next (pinned, for a GPU)."""

    def __init__(self):
        self._copies: dict[tuple[str, torch.Size], torch.Tensor] = {}
        self._preparing: threading.Thread | None = None

    def prepare(self, state_dict: dict[str, Pieces]) -> None:
        """Take the memory for such pieces in a thread, so that not even the first `stage` waits for it."""

        def take() -> None:
            for name, held in state_dict.items():
                for offset, view in held.views.items():
                    self._memory(name, offset, view).zero_()

        self._preparing = threading.Thread(target=take, name="stager")
        self._preparing.start()

    def stage(self, state_dict: dict[str, Pieces]) -> dict[str, Pieces]:
        """The same pieces in the copies; they are complete when this returns."""
        if self._preparing:
            self._preparing.join()
            self._preparing = None
        staged = {}
        for name, held in state_dict.items():
            staged[name] = Pieces(held.shape, {offset: self._copy(name, offset, view) for offset, view in held.views.items()})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return staged

    def _copy(self, name: str, offset: torch.Size, view: torch.Tensor) -> torch.Tensor:
        return self._memory(name, offset, view).copy_(view, non_blocking=True)

    def _memory(self, name: str, offset: torch.Size, view: torch.Tensor) -> torch.Tensor:
        memory = self._copies.get((name, offset))
        if memory is None:
            memory = torch.empty(view.shape, dtype=view.dtype, pin_memory=view.is_cuda)
            self._copies[name, offset] = memory
        return memory


class Saver:
    """One save at a time, in a thread that talks to the other ranks over a gloo group of its own (collective to construct)."""

    def __init__(self):
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._stager, self._plans = Stager(), KeptPlans()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._future: Future | None = None

    def prepare(self, shards: dict[str, Shard]) -> None:
        """Make ready for saves that will come: take the memory for a copy of weights and moments, beside what goes on."""
        kinds = (WEIGHTS, *MOMENTS)  # a moment is cut as its master is, and need not exist yet
        self._stager.prepare({f"{kind}/{name}": pieces(shard, shard.master) for kind in kinds for name, shard in shards.items()})

    def start(
        self,
        path: Path,
        shards: dict[str, Shard],
        base_optimizer: torch.optim.Optimizer | None,
        step: int,
        state: Callable[[], dict],
        attached: dict[str, bytes] | None = None,
        directory: Directory = Directory(),
        patient: bool = False,
    ) -> None:
        """Begin to write a checkpoint directory (collective over the world); the save before it must be waited for.

        It appears under its name when every rank has written and everything is on the disk; what was there before is replaced. Values
        that are not finite never get there: the save fails, and what it wrote stays aside as `path` + NOT_FINITE.

        Args:
            state: what JSON can hold, to be written beside `step`; called on rank 0, in the thread, when every rank has written.
            attached: contents of small files by their names; rank 0's are written.
            directory: where it is written.
            patient: on a full disk wait for room, `PATIENCE` seconds at most, instead of giving up.
        """
        began = time.perf_counter()
        self._directory = directory
        self._path, self._partial, self._step = path, path.with_name(path.name + PARTIAL), step

        def close(written: list[TensorFile]) -> None:
            for name, content in (attached or {}).items():
                write_bytes(self._partial / name, content)
            seal(self._partial, {**state(), "step": step}, written)
            directory.check()
            if not_finite := sorted({name for file in written for name in file.not_finite}):
                aside = path.with_name(path.name + NOT_FINITE)
                publish(self._partial, aside)
                more = f" and {len(not_finite) - 1} more" if len(not_finite) > 1 else ""
                raise NotFiniteError(f"{path} was not written: {not_finite[0]}{more} hold values that are not finite; kept as {aside.name}")
            publish(self._partial, path)
            directory.published()

        staged = self._stager.stage(held_tensors(shards, base_optimizer))
        self._future = self._thread.submit(self._write, staged, close, directory, patient)
        self._began, self._stall, self._ended = began, time.perf_counter() - began, None
        self._future.add_done_callback(self._note_end)

    def _write(self, staged: dict[str, Pieces], close: Callable, directory: Directory, patient: bool) -> None:
        """Write, and again after a full disk as long as `_try_again` says so."""
        began, waiting = time.monotonic(), []
        while True:
            try:
                dcp.save(
                    staged,
                    storage_writer=Writer(self._partial, directory.check, close, chunk_bytes(staged)),
                    planner=SavePlanner(self._plans),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
                return
            except CheckpointException as failed:  # the same on every rank
                full = any(isinstance(error, OSError) and error.errno in NO_ROOM for error, _ in failed.failures.values())
                if not full or not self._try_again(directory, began, waiting if patient else None):
                    raise

    def _try_again(self, directory: Directory, began: float, waiting: list[str] | None) -> bool:
        """Whether there may be room now: rank 0 removes the attempt and what need not stay, or waits, and decides for all.

        `waiting` holds the line that was told, once there is one; None for a save that does not wait.
        """
        again = [False]
        if leads():
            with suppress(OSError, NgptError):
                directory.check()
                remove(self._partial)
                again = [directory.make_room()]
                if not again[0] and waiting is not None and time.monotonic() - began < PATIENCE:
                    if not waiting:
                        waiting.append(f"the disk is full: {self._path.name} waits for room, {PATIENCE / 60:g} minutes at most")
                        directory.say(f"warning: {waiting[0]}")
                    time.sleep(RETRY)
                    again = [True]
        if self._group is not None:
            dist.broadcast_object_list(again, src=0, group=self._group)
        return again[0]

    def finished(self) -> Saved | None:
        """The save under way if it is over, told once."""
        return self.wait() if self._future and self._future.done() else None

    def wait(self) -> Saved | None:
        """The save under way, when it is over; None if there is none. After a failure nothing is left of the attempt but values that are
        not finite."""
        if self._future is None:
            return None
        began, error = time.perf_counter(), None
        try:
            with one_line(f"checkpoint {self._path} could not be written"):
                self._future.result()
        except CheckpointError as failed:
            error = failed
            if leads():
                with suppress(OSError, NgptError):
                    self._directory.check()
                    remove(self._partial)
        self._future = None
        stall, seconds = self._stall + time.perf_counter() - began, (self._ended or time.perf_counter()) - self._began
        return Saved(self._path, self._step, stall, seconds, error)

    def _note_end(self, _: Future) -> None:
        self._ended = time.perf_counter()


def save(path: Path, shards: dict[str, Shard], base_optimizer: torch.optim.Optimizer | None, state: dict) -> None:
    """Write a checkpoint directory, with a `state` that holds its `step`, and wait for it (collective).

    Raises:
        CheckpointError: on every rank; what was at `path` stays.
    """
    saver = Saver()
    saver.start(path, shards, base_optimizer, state["step"], lambda: state)
    if error := saver.wait().error:
        raise error
