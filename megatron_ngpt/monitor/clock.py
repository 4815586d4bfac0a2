"""How long a step takes, and where the time goes.

On a CPU, times are the host's. On a GPU they are the device's: events in the stream in which this rank computes, read when the step is
looked at, so that the host waits for nothing; what other streams do meanwhile costs no time of a step and is not seen. A collective counts
while that stream waits for it (on a CPU, while this rank does), other ranks' being late included.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist

COMMUNICATION = "communication"
PHASES = ("data", "forward_backward", COMMUNICATION, "optimizer", "rest")
_COLLECTIVES = (
    "allreduce", "allreduce_coalesced", "broadcast", "reduce", "allgather", "allgather_coalesced", "_allgather_base",
    "allgather_into_tensor_coalesced", "all_gather_single", "all_gather_single_coalesced", "reduce_scatter", "_reduce_scatter_base",
    "reduce_scatter_single", "reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced", "alltoall", "alltoall_base",
    "all_to_all_single", "gather", "scatter", "send", "recv", "recv_anysource", "barrier",
)  # fmt: skip


class Clock:
    """Seconds a step, without what evaluations and checkpoints take; of a step that is measured, the seconds of each phase too.

    A phase lasts until the next one begins. Where none has begun it is the rest. `tell` is told each time one begins, in every step and
    on every rank alike: communication, which counts by rank, is not.
    """

    def __init__(self, step: int, device: torch.device):
        self.tell: Callable[[str], None] = lambda _: None
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._phase, self.measuring = "rest", False
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure from now on, after `step`."""
        self._step, self._since = step, time.perf_counter()
        self._began = self._now()

    def lap(self, step: int) -> float:
        """Mean seconds of the steps since the last lap or restart."""
        seconds = (time.perf_counter() - self._since) / (step - self._step)
        self.restart(step)
        return seconds

    @contextmanager
    def measured(self, step: int) -> Iterator[None]:
        """Measure the phases of `step`, which the block makes; from the last lap on, if that was at the step before."""
        began = self._began if self._step == step - 1 else self._now()
        self._marks, self._phase, self.measuring = [("rest", began)], "rest", True
        with _watched_collectives(self):
            try:
                yield
            finally:
                self._marks.append(("", self._now()))
                self.measuring = False

    def enter(self, phase: str) -> None:
        """From now on the step is in `phase`."""
        if COMMUNICATION not in (phase, self._phase):
            self.tell(phase)
        self._phase = phase
        if self.measuring:
            self._marks.append((phase, self._now()))

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """The block is of `phase`."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of the step that was measured last; its numbers must have been read, so that the device is done."""
        found = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, stop) in pairwise(self._marks):
            found[phase] += stop - start if self._stream is None else start.elapsed_time(stop) / 1e3
        return found

    @property
    def elsewhere(self) -> bool:
        """Work is being given to another stream than the one that is measured."""
        return self._stream is not None and torch.cuda.current_stream() != self._stream

    def _now(self) -> "float | torch.cuda.Event":
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


@contextmanager
def _watched_collectives(clock: Clock) -> Iterator[None]:
    """All collectives in the block, ours, torch's and DeepSpeed's, are of the phase communication: the calls of process groups, and the
    waits for what they return."""
    places = [(dist.ProcessGroup, name) for name in _COLLECTIVES] + [(dist.Work, "wait")]
    originals = [(owner, name, vars(owner)[name]) for owner, name in places if name in vars(owner)]

    def watching(original):
        def method(this, *args, **kwargs):
            bound = original.__get__(this)
            if clock.elsewhere:
                return bound(*args, **kwargs)
            with clock.within(COMMUNICATION):
                return bound(*args, **kwargs)

        return method

    for owner, name, original in originals:
        setattr(owner, name, watching(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
