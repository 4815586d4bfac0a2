"""The sections of a run, each with the key of the recipe that says how long a rank may stay in it without getting further."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One of `SECTIONS`.

    Attributes:
        number: its place there.
        words: what a rank does in it, for people.
        key: of `watchdog` in the recipe.
        more: seconds that it may take beyond what the key says, since somebody else has a limit there and tells more.
        files: in it, reading and writing files is getting further.
    """

    number: int
    words: str
    key: str
    more: float = 0.0
    files: bool = False


START = Section(0, "starting", "start", files=True)
MEETING = Section(1, "meeting the other ranks", "start", more=60.0)
DATA = Section(2, "reading its samples", "step")
FORWARD_BACKWARD = Section(3, "forward and backward", "step")
OPTIMIZER = Section(4, "the update", "step")
REST = Section(5, "outside forward, backward and update", "step")
EVALUATION = Section(6, "evaluation", "evaluation")
SAVE = Section(7, "saving a checkpoint", "save", files=True)
LAST_SAVE = Section(8, "saving the last checkpoint", "save", more=600.0, files=True)  # which waits for room on a full disk
END = Section(9, "ending", "step")
PHASES = {"data": DATA, "forward_backward": FORWARD_BACKWARD, "optimizer": OPTIMIZER, "rest": REST}  # of a step, by the clock's names
SECTIONS = (START, MEETING, DATA, FORWARD_BACKWARD, OPTIMIZER, REST, EVALUATION, SAVE, LAST_SAVE, END)


FOREVER = 30 * 86400.0  # seconds, where something needs a number
GRACE = 120.0  # seconds that torch waits longer than a watchdog, which tells more


def meeting_seconds(keys: Mapping[str, int]) -> float:
    """How long the ranks wait for one that is missing."""
    return float(keys["start"]) or FOREVER


def collective_seconds(keys: Mapping[str, int]) -> float:
    """How long torch lets a collective take: a little longer than the watchdogs let any section."""
    limits = [limit(section, keys, first) for section in SECTIONS for first in (False, True)]
    return max(limits) + GRACE if all(limits) else FOREVER


def limit(section: Section, keys: Mapping[str, int], first: bool) -> float:
    """Seconds that a rank may stay in a section; 0: any number.

    Args:
        keys: the recipe's `watchdog`.
        first: no step is over yet, and what the first one compiles belongs to the start.
    """
    seconds = keys[section.key]
    if first and seconds and section.key == "step":
        seconds = max(seconds, keys["start"]) if keys["start"] else 0
    return seconds + section.more if seconds else 0.0
