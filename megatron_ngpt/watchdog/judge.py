"""Who is behind, from what all ranks' watchdogs report; and its words. All of it is arithmetic on reports."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.watchdog.sections import SECTIONS, Section

SHOWN = 8  # ranks that are named
STOPPED = "Tt"
LETTERS = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a disk or a device"}


@dataclass(frozen=True)
class Report:
    """What a rank's watchdog says of it: fields of `page.State`, and

    Attributes:
        age: seconds without getting further.
        letter: what the kernel says that it does.
        stage: of the pipeline.
        log: its file.
    """

    rank: int
    host: str
    log: str
    stage: int
    beats: int
    step: int
    section: int
    limit: float
    age: float
    letter: str
    busy: float
    measured: int

    @property
    def where(self) -> Section:
        """Its section."""
        return SECTIONS[self.section]


@dataclass(frozen=True)
class Look:
    """What a rank's stacks showed: see `stacks.Place`; an empty place: it wrote none."""

    place: str
    waits: bool


def overdue(reports: Iterable[Report]) -> bool:
    """Whether a rank has stayed too long where it is. Where every rank is stopped somebody has paused the run."""
    reports = list(reports)
    late = any(report.limit and report.age > report.limit for report in reports)
    return late and not all(report.letter and report.letter in STOPPED for report in reports)


def behind(reports: Mapping[int, Report], looks: Mapping[int, Look]) -> list[Report]:
    """The ranks that the others wait for: the stopped ones, which may be a collective further than who waits for the rest of what they
    sent; else, of those that got least far, those that wait for nobody."""
    stopped = [report for report in reports.values() if report.letter and report.letter in STOPPED]
    least = min(report.beats for report in reports.values())
    last = [report for report in reports.values() if report.beats == least]
    silent = [report for report in last if not looks.get(report.rank, Look("", False)).place]
    busy = [report for report in last if not looks.get(report.rank, Look("", False)).waits]
    return stopped or (silent if 0 < len(silent) < len(last) else busy) or last


def hang_line(found: list[Report], world: int, looks: Mapping[int, Look], keys: Mapping[str, int]) -> str:
    """What a person is told of the ranks that are behind."""
    first = found[0]
    section, place = first.where, looks.get(first.rank, Look("", False)).place
    key = section.key if first.limit - section.more == keys[section.key] else "start"  # which the first step counts for
    who = f"none of {world} ranks gets further" if len(found) == world > 1 else f"{named(found)} {_is(found)} behind"
    state = f"; {LETTERS[first.letter]}" if first.letter in LETTERS else ""
    at = f", at {place}" if place else "" if state else "; gave no stack"
    return (
        f"{who}: {_section_words(first)}, not further for {first.age:.0f} s (watchdog.{key} = {keys[key]}){at}{state}; "
        f"every rank is ended, stacks are in {first.log if len(found) == 1 else Path(first.log).with_name('rank-*.log')}"
    )


def gone_line(found: list[Report], how: str) -> str:
    """What a person is told of ranks whose processes are gone."""
    return f"{named(found)} {how}: {_section_words(found[0])}; the others are ended; its log: {found[0].log}"


def lost_line(found: list[Report], seconds: float) -> str:
    """What a person is told of ranks whose watchdogs are not heard any more."""
    return f"no word from {named(found)} for {seconds:.0f} s: the host is gone, or the network between; the others are ended"


def named(found: list[Report]) -> str:
    """`rank 3 on node2`, `ranks 2, 3 on node2`, `ranks 0, 2 on node1, node2`."""
    numbers = ", ".join(str(report.rank) for report in found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    hosts = list(dict.fromkeys(report.host for report in found))
    more = f" and {len(hosts) - SHOWN} more" if len(hosts) > SHOWN else ""
    return f"rank{'s' if len(found) > 1 else ''} {numbers} on {', '.join(hosts[:SHOWN])}{more}"


def _is(found: list[Report]) -> str:
    return "are" if len(found) > 1 else "is"


def _section_words(report: Report) -> str:
    return f"step {report.step}, {report.where.words}" if report.step else report.where.words
