"""The page of memory in which a rank writes how far it is, and its watchdog reads it: a store costs the rank less than a microsecond."""

import mmap
import os
import struct
from dataclasses import dataclass

from megatron_ngpt.watchdog.sections import SECTIONS, Section

_BEATS, _STEP, _SECTION, _OVER = (struct.Struct("=Q"), 0), (struct.Struct("=Q"), 8), (struct.Struct("=B"), 16), (struct.Struct("=B"), 17)
_LIMIT, _BUSY, _MEASURED = (struct.Struct("=d"), 24), (struct.Struct("=d"), 32), (struct.Struct("=Q"), 40)
SIZE = 64


@dataclass(frozen=True)
class State:
    """Where a rank is.

    Attributes:
        beats: how often it has got further; all ranks count the same.
        step: the step that it is in.
        limit: seconds that it may stay without getting further; 0: any number.
        busy: seconds that it computed, not waiting for others, over `measured` steps of this start.
        over: it leaves on its own account, and is no watchdog's business any more.
    """

    beats: int
    step: int
    section: Section
    limit: float
    busy: float
    measured: int
    over: bool


class Page:
    """Shared by two processes that have the file descriptor; one writes."""

    def __init__(self, descriptor: int | None = None):
        if descriptor is None:
            descriptor = os.memfd_create("watchdog")
            os.truncate(descriptor, SIZE)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SIZE)
        self._beats = 0

    def beat(self) -> None:
        """The rank has got further."""
        self._beats += 1
        self._put(_BEATS, self._beats)

    def enter(self, section: Section, limit: float) -> None:
        """It has got further, into a section."""
        self._put(_SECTION, section.number)
        self._put(_LIMIT, limit)
        self.beat()

    def step(self, step: int) -> None:
        """It is in this step now."""
        self._put(_STEP, step)

    def busy(self, seconds: float, measured: int) -> None:
        """It was busy for so long in all steps that were measured."""
        self._put(_BUSY, seconds)
        self._put(_MEASURED, measured)

    def leave(self) -> None:
        """It ends."""
        self._put(_OVER, 1)

    def read(self) -> State:
        """Where the rank is now."""
        get = self._get
        section = SECTIONS[get(_SECTION)]
        return State(get(_BEATS), get(_STEP), section, get(_LIMIT), get(_BUSY), get(_MEASURED), bool(get(_OVER)))

    def _put(self, field: tuple[struct.Struct, int], value: float) -> None:
        field[0].pack_into(self._memory, field[1], value)

    def _get(self, field: tuple[struct.Struct, int]):
        return field[0].unpack_from(self._memory, field[1])[0]
