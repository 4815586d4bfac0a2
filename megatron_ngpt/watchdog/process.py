"""The watchdog's own process: it looks at its rank, talks to the other watchdogs, and ends the rank where that has to be.

Rank 0's hears what all the others report and decides for all. One that hears nothing of rank 0's decides for itself.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from megatron_ngpt.watchdog.channel import Channel
from megatron_ngpt.watchdog.judge import Look, Report, hang_line, overdue
from megatron_ngpt.watchdog.leader import LOOK, Leader
from megatron_ngpt.watchdog.settings import Settings
from megatron_ngpt.watchdog.subject import Subject

TICK = 0.2  # seconds between two looks
PAUSE = 2.0  # a longer time between two looks was no time of the run's: everything was stopped, this process too
LINGER = 10.0  # seconds that a watchdog outlives its rank at most
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Watchdog:
    """Of one rank. Times are seconds of its own clock, which stands still while everything is stopped."""

    def __init__(self, settings: Settings):
        self._settings, self._subject = settings, Subject(settings)
        self._control = Channel(socket.socket(fileno=settings.control))
        self._leader = Leader(settings, self._warn) if settings.rank == 0 else None
        self._channel: Channel | None = None  # to rank 0's
        self._call: dict | None = None  # whom to call there, and how
        self._now, self._real = 0.0, time.monotonic()
        self._stage, self._reported, self._heard, self._unwatched = 0, -settings.interval, 0.0, False
        self._failed, self._ended, self._looked = None, None, None  # the rank's error, how its process ended, when it was asked for stacks

    def run(self) -> None:
        """Until the rank is over."""
        while True:
            select.select([] if self._ended else [self._subject.descriptor, *([self._control] if self._control.open else [])], [], [], TICK)
            real = time.monotonic()
            self._now, self._real = self._now + min(real - self._real, PAUSE), real
            self._subject.look(self._now)
            if self._subject.state.over:
                return self._leave()
            self._listen_to_rank()
            self._notice_end()
            line = self._lead() if self._leader else self._follow()
            if line is not None:
                return self._end(line)

    def _listen_to_rank(self) -> None:
        for words in self._control.heard() if self._control.open else ():
            if "listen" in words:
                self._control.say(port=self._leader.listen(words["listen"]["token"], words["listen"]["world"]))
            if "join" in words:
                self._call = words["join"]
            if "stage" in words:
                self._stage = words["stage"]
            if "failed" in words:
                self._failed = words["failed"]
                if self._leader:
                    self._leader.failed(self._report(), self._failed, self._now)
                elif self._channel:
                    self._channel.say(failed=self._failed)

    def _notice_end(self) -> None:
        if self._ended is not None or (how := self._subject.ended()) is None:
            return
        self._subject.look(self._now)
        if self._subject.state.over or self._failed:
            return
        self._ended, self._heard = how, self._now
        if self._leader:
            self._leader.gone(self._report(), how, self._now)
        elif self._channel:
            self._channel.say(report=asdict(self._report()))
            self._channel.say(gone=how)

    def _lead(self) -> str | None:
        if self._ended is None:
            self._leader.report(self._report(), self._now)
        looking = self._leader.looking
        line = self._leader.attend(self._now)
        if self._leader.looking and not looking:
            self._ask_for_stacks()
        if line is None and (look := self._stacks()):
            self._leader.look(0, look)
        return line

    def _follow(self) -> str | None:
        """Report to rank 0's watchdog, and do what it says; or judge alone."""
        line = self._converse() if self._channel else self._connect()
        if line is not None:
            return line
        if self._channel is None or self._unwatched:
            return self._judge_alone()
        limit = LINGER if self._ended else self._subject.state.limit
        if limit and self._now - self._heard > limit:
            return f"{self._own_words()} has no word from rank 0's watchdog for {self._now - self._heard:.0f} s, and is ended"
        return None

    def _connect(self) -> None:
        if self._call is None:
            return
        with suppress(OSError):
            self._channel = Channel(socket.create_connection((self._call["host"], self._call["port"]), timeout=PAUSE))
            self._channel.say(token=self._call["token"], rank=self._settings.rank)
            self._channel.say(report=asdict(self._report()))
            self._heard = self._now
            if self._failed is not None:
                self._channel.say(failed=self._failed)

    def _converse(self) -> str | None:
        for words in self._channel.heard():
            self._heard = self._now
            if "end" in words:
                return words["end"]
            if "look" in words:
                self._ask_for_stacks()
            self._unwatched |= "bye" in words
        if not self._channel.open and not self._unwatched:
            return f"{self._own_words()} is ended: rank 0's watchdog has gone, with its process or its host"
        if self._now - self._reported >= self._settings.interval and self._ended is None:
            self._reported = self._now
            self._channel.say(report=asdict(self._report()))
        if look := self._stacks():
            self._channel.say(look=asdict(look))
        self._channel.flush()
        return None

    def _judge_alone(self) -> str | None:
        if self._failed is not None or self._ended is not None:
            return f"{self._own_words()}: {self._failed or self._ended}; its log: {self._settings.log}"
        if self._looked is None and overdue([report := self._report()]):
            self._ask_for_stacks()
        elif look := self._stacks():
            report = self._report()
            return hang_line([report], 1, {report.rank: look}, self._settings.keys)
        return None

    def _ask_for_stacks(self) -> None:
        self._looked = self._now
        self._subject.dump()

    def _stacks(self) -> Look | None:
        """What the stacks show that the rank was asked for, once: nothing if it has not written them in time."""
        if self._looked is None:
            return None
        found = self._subject.place()
        if found is None and self._now - self._looked < LOOK - 1.0:
            return None
        self._looked = None
        return Look(found.place, found.waits) if found else Look("", False)

    def _report(self) -> Report:
        state, settings = self._subject.state, self._settings
        return Report(
            rank=settings.rank, host=settings.host, log=settings.log, stage=self._stage, beats=state.beats, step=state.step,
            section=state.section.number, limit=state.limit, age=self._subject.age(self._now), letter=self._subject.letter(),
            busy=state.busy, measured=state.measured,
        )  # fmt: skip

    def _own_words(self) -> str:
        return f"rank {self._settings.rank} on {self._settings.host}"

    def _end(self, line: str) -> None:
        """Tell the line, where it was found, and end the rank."""
        alone = self._channel is None or not self._channel.open or self._now - self._heard > LOOK
        if self._leader or (alone and (self._settings.local_rank == 0 or self._failed)):
            self._tell(line)
        if self._leader:
            self._event("watchdog", found=line)
            self._flush(line)
        self._subject.note(line)
        if self._failed is None:
            self._subject.kill()

    def _leave(self) -> None:
        """The rank is over; rank 0's watchdog stays for a moment, so that no other finds it gone."""
        if self._channel:
            self._channel.say(bye=True)
        if self._leader:
            self._flush(None)

    def _flush(self, line: str | None) -> None:
        until = time.monotonic() + (LINGER if line is None else PAUSE)
        while not (self._leader.dismiss(line) and self._leader.alone(self._now)) and time.monotonic() < until:
            time.sleep(TICK / 10)

    def _warn(self, found: list[Report], line: str) -> None:
        self._tell(line)
        self._event("straggler", ranks=[report.rank for report in found], host=found[0].host, found=line)

    def _tell(self, line: str) -> None:
        with suppress(OSError):
            os.write(self._settings.console, (line + "\n").encode("utf-8", "replace"))

    def _event(self, kind: str, **details) -> None:
        """Into `events.jsonl`, in one write, beside what the rank itself writes there."""
        line = {"time": round(time.time(), 3), "event": kind, "step": self._leader.step(), **details}
        with suppress(OSError), open(Path(self._settings.output) / "events.jsonl", "ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")


def main() -> None:
    """`python -S -m megatron_ngpt.watchdog.process SETTINGS`."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Watchdog(Settings.read(sys.argv[1])).run()


if __name__ == "__main__":
    main()
