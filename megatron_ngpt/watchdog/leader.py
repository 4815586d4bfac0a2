"""Rank 0's watchdog hears all the others, and finds what is wrong in the whole run."""

import socket
from collections.abc import Callable

from megatron_ngpt.watchdog.channel import Channel
from megatron_ngpt.watchdog.judge import Look, Report, behind, gone_line, hang_line, lost_line, overdue
from megatron_ngpt.watchdog.settings import Settings
from megatron_ngpt.watchdog.stragglers import Stragglers

SETTLE = 1.0  # seconds in which one failure may be joined by others that belong to it
LOOK = 5.0  # seconds in which ranks must have written their stacks
SILENT = 5.0  # seconds without a word after which a rank's last report says little


class Leader:
    """The whole run, as its ranks' watchdogs report it.

    Args:
        warn: is given ranks that are slow, and a line about them.
    """

    def __init__(self, settings: Settings, warn: Callable[[list[Report], str], None]):
        self._settings, self._warn = settings, warn
        self._listener: socket.socket | None = None
        self._token, self._world = "", 1
        self._callers: list[Channel] = []  # who have not said yet who they are
        self._channels: dict[int, Channel] = {}
        self._reports: dict[int, Report] = {}
        self._heard: dict[int, float] = {}
        self._looks: dict[int, Look] | None = None  # None: nobody was asked
        self._failures: list[tuple[Report, str]] = []  # the first is the cause
        self._gone: list[tuple[Report, str]] = []
        self._since = 0.0  # of the trouble
        self._stragglers, self._compared = Stragglers(), 0.0

    def listen(self, token: str, world: int) -> int:
        """Let `world` - 1 others call, who know the token; returns the port."""
        self._token, self._world = token, world
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=family == socket.AF_INET6)
        self._listener.setblocking(False)
        return self._listener.getsockname()[1]

    def report(self, report: Report, now: float) -> None:
        """What one rank's watchdog says of it."""
        self._reports[report.rank], self._heard[report.rank] = report, now

    def look(self, rank: int, look: Look) -> None:
        """What a rank's stacks showed."""
        if self._looks is not None:
            self._looks[rank] = look

    def failed(self, report: Report, line: str, now: float) -> None:
        """A rank has raised an error."""
        self._begin(now)
        self._failures.append((report, line))

    def gone(self, report: Report, how: str, now: float) -> None:
        """A rank's process has ended, and not on its own account."""
        self._begin(now)
        self._gone.append((report, how))

    def attend(self, now: float) -> str | None:
        """Hear what there is; returns the line with which every rank is to be ended, or None."""
        self._hear(now)
        if self._failures or self._gone:
            return self._cause() if now - self._since >= SETTLE else None
        silent = [report for report in self._reports.values() if now - self._heard[report.rank] > SILENT]
        if lost := [report for report in silent if report.limit and now - self._heard[report.rank] > report.limit]:
            return lost_line(lost, max(now - self._heard[report.rank] for report in lost))
        if self._looks is not None:
            return self._hang(silent, now)
        if overdue(self._reports.values()):
            self._looks, self._since = {}, now
            self._say_all(look=True)
        elif now - self._compared >= self._settings.period:
            self._compared = now
            for found, line in self._stragglers.compare(self._reports.values()):
                self._warn(found, line)
        return None

    @property
    def looking(self) -> bool:
        """Ranks are asked for their stacks."""
        return self._looks is not None

    def step(self) -> int:
        """The newest step that any rank is in."""
        return max((report.step for report in self._reports.values()), default=0)

    def dismiss(self, line: str | None) -> bool:
        """Tell the others that every rank is to be ended, with a line, or that nobody watches over all any more; returns whether they
        have been told. Once is enough; later calls say nothing new."""
        if self._listener:
            self._listener.close()
            self._listener = None
            self._say_all(**({"bye": True} if line is None else {"end": line}))
        return all([channel.flush() for channel in self._channels.values()])

    def alone(self, now: float) -> bool:
        """Whether nobody is connected any more."""
        self._hear(now)
        return not any(channel.open for channel in self._channels.values())

    def _begin(self, now: float) -> None:
        if not self._failures and not self._gone:
            self._since = now

    def _cause(self) -> str:
        """The first end comes before errors, which it may have led to: a rank that raises one stays until it is told, and ends nobody."""
        if not self._gone:
            report, line = self._failures[0]
            same = sum(other == line for _, other in self._failures[1:])
            more = f" (and {same} other rank{'s' if same > 1 else ''})" if same else ""
            who = f"rank {report.rank} on {report.host}{more}: " if self._world > 1 else ""
            return f"{who}{line}; its log: {report.log}"
        first = self._gone[0]
        return gone_line([report for report, how in self._gone if how == first[1] and report.host == first[0].host], first[1])

    def _hang(self, silent: list[Report], now: float) -> str | None:
        """The verdict on ranks that do not get further, once all have been looked at."""
        if len(self._looks) < len(self._reports) and now - self._since < LOOK:
            return None
        if not overdue(self._reports.values()):  # it went on meanwhile
            self._looks = None
            return None
        if silent:
            return lost_line(silent, max(now - self._heard[report.rank] for report in silent))
        return hang_line(behind(self._reports, self._looks), len(self._reports), self._looks, self._settings.keys)

    def _hear(self, now: float) -> None:
        self._accept()
        for channel in self._callers[:]:
            if said := list(channel.heard()):
                self._callers.remove(channel)
                if said[0].get("token") == self._token:
                    rank = said[0]["rank"]
                    self._channels[rank], self._heard[rank] = channel, now
                    for words in said[1:]:
                        self._take(rank, channel, words, now)
        for rank, channel in self._channels.items():
            for words in channel.heard():
                self._take(rank, channel, words, now)
            if not channel.open and rank in self._reports:
                self.gone(self._reports.pop(rank), "has gone, and its watchdog too", now)

    def _accept(self) -> None:
        try:
            while self._listener:
                self._callers.append(Channel(self._listener.accept()[0]))
        except OSError:  # nobody else calls
            return

    def _take(self, rank: int, channel: Channel, words: dict, now: float) -> None:
        if "report" in words:
            self.report(Report(**words["report"]), now)
            channel.say(here=True)
        if "look" in words:
            self.look(rank, Look(**words["look"]))
        if "failed" in words and rank in self._reports:
            self.failed(self._reports[rank], words["failed"], now)
        if "gone" in words and rank in self._reports:
            self.gone(self._reports.pop(rank), words["gone"], now)
        if "bye" in words:
            self._reports.pop(rank, None)

    def _say_all(self, **words) -> None:
        for channel in self._channels.values():
            channel.say(**words)
