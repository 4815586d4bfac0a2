"""Ranks that are persistently slow: each one's own work of a step, without its waiting for others, beside that of the ranks like it."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import median_low

from megatron_ngpt.watchdog.judge import Report, named

SLOW = 1.2  # times the median
PATIENCE = 3  # periods in a row


class Stragglers:
    """Compares periods of work. Ranks of one pipeline stage do the same work; others need not."""

    def __init__(self):
        self._before: dict[int, Report] = {}
        self._slow: dict[int, int] = defaultdict(int)  # periods in a row, by rank

    def compare(self, reports: Iterable[Report]) -> list[tuple[list[Report], str]]:
        """The ranks to tell of after another period, and the line for each group, once a spell; several of one host are one group.

        A period ends when every rank has measured a step in it; until then the answer is empty.
        """
        reports = list(reports)
        means = {report.rank: self._mean(report) for report in reports}
        if not reports or None in means.values():
            self._before = self._before or {report.rank: report for report in reports}
            return []
        self._before = {report.rank: report for report in reports}
        medians = self._medians(reports, means)
        found: dict[str, list[Report]] = defaultdict(list)
        for report in reports:
            slow = means[report.rank] > SLOW * medians[report.stage]
            self._slow[report.rank] = self._slow[report.rank] + 1 if slow else 0
            if self._slow[report.rank] == PATIENCE:
                found[report.host].append(report)
        return [(group, self._line(group, means, medians)) for group in found.values()]

    def _mean(self, report: Report) -> float | None:
        """Seconds of work a step since the period before; None where none was measured."""
        before = self._before.get(report.rank)
        if before is None or report.measured <= before.measured:
            return None
        return (report.busy - before.busy) / (report.measured - before.measured)

    def _medians(self, reports: list[Report], means: dict[int, float]) -> dict[int, float]:
        """By stage."""
        stages = {report.stage for report in reports}
        return {stage: median_low(means[report.rank] for report in reports if report.stage == stage) for stage in stages}

    def _line(self, group: list[Report], means: dict[int, float], medians: dict[int, float]) -> str:
        slowest = max(group, key=lambda report: means[report.rank])
        return (
            f"warning: {named(group)} {'are' if len(group) > 1 else 'is'} slow: {means[slowest.rank]:.3g} s of work a step, where the "
            f"median of the ranks with the same work is {medians[slowest.stage]:.3g} s; all wait for it"
        )
