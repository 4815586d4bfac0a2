"""The order of a preflight: each host by itself, what they share, where they meet, then the links between them."""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ngpt.cluster import judge, report
from megatron_ngpt.cluster.conversation import Conversation
from megatron_ngpt.cluster.hostfile import Host, passed_on
from megatron_ngpt.errors import NgptError

FACTS_SECONDS = 120
ANSWER_SECONDS = 60
SHARED_SECONDS = 5.0  # in which a file must be seen on the others
LINKS_SECONDS = 120  # torch loads, the hosts meet, each pair takes about a second


@dataclass(frozen=True)
class Plan:
    """What is to be started: the recipe with its overrides, the hosts, and where the ranks are to meet (None: as the launcher chooses)."""

    recipe: str
    overrides: list[str]
    hosts: list[Host]
    master_addr: str | None
    master_port: int

    @property
    def ranks(self) -> int:
        """On all hosts together."""
        return sum(host.slots for host in self.hosts)


@dataclass
class Findings:
    """What has been found so far, by host."""

    facts: dict[str, dict] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    links: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    backend: str = ""

    def add(self, problems: judge.Problems) -> None:
        """More problems."""
        for host, lines in problems.items():
            if lines:
                self.problems.setdefault(host, []).extend(lines)


def check(plan: Plan, say: Callable[[str], None]) -> int:
    """Look at everything and tell; 0 if nothing is wrong, else 2. Raises ConfigError for an environment that the launcher can't read."""
    variables = passed_on(os.environ, Path.cwd())
    began = time.monotonic()
    found = asyncio.run(_Preflight(plan, variables).find())
    for line in (*report.lines(plan.hosts, found.problems, found.facts), *report.table(found.links, found.backend)):
        say(line)
    wrong = sum(map(bool, found.problems.values()))
    verdict = f"{wrong} of {len(plan.hosts)} hosts can't train" if wrong else f"{plan.ranks} ranks can train on {len(plan.hosts)} hosts"
    say(f"{verdict}; looked for {time.monotonic() - began:.0f} s")
    return 2 if wrong else 0


class _Preflight:
    def __init__(self, plan: Plan, variables: dict[str, str]):
        self._plan, self._found = plan, Findings()
        self._talks = {host.name: Conversation(host.name, os.getcwd(), variables) for host in plan.hosts}

    async def find(self) -> Findings:
        """Ask until something is wrong that makes the next questions useless."""
        try:
            await self._each(lambda name: self._talks[name].open())
            if not self._found.problems:
                await self._clocks()
                await self._facts()
            if len(self._found.facts) == len(self._plan.hosts):
                await self._shared()
                master = await self._door()
                if not self._found.problems:
                    await self._links(master)
        finally:
            await asyncio.gather(*(talk.close() for talk in self._talks.values()))
        return self._found

    async def _each(self, ask: Callable[[str], Awaitable[dict | None]], of: list[str] | None = None) -> dict[str, dict]:
        """The answers of all hosts, asked at the same time; who gives none has a problem."""
        names = list(self._talks) if of is None else of
        answers = await asyncio.gather(*map(ask, names), return_exceptions=True)
        found = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, NgptError):
                self._found.add({name: [str(answer)]})
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[name] = answer
        return found

    async def _clocks(self) -> None:
        async def offset(name: str) -> tuple[float, float]:
            before = time.time()
            answer = await self._talks[name].ask(ANSWER_SECONDS, "clock")
            doubt = (time.time() - before) / 2
            return answer["time"] - before - doubt, doubt

        self._offsets = await self._each(offset)
        if self._offsets:
            self._found.add(judge.clocks(self._offsets))

    async def _facts(self) -> None:
        plan = self._plan
        facts = await self._each(
            lambda name: self._talks[name].ask(FACTS_SECONDS, "facts", recipe=plan.recipe, overrides=plan.overrides, ranks=plan.ranks)
        )
        for host in plan.hosts:
            if host.name in facts:
                facts[host.name]["clock"] = self._offsets.get(host.name, (0.0, 0.0))[0]
                self._found.add({host.name: judge.alone(host, facts[host.name])})
        if facts:
            self._found.add(judge.together(facts))
        self._found.facts = facts

    async def _shared(self) -> None:
        """Whether all hosts see one run directory."""
        output = next(iter(self._found.facts.values()))["output"]
        names = {name: f".ngpt-preflight-{secrets.token_hex(4)}-{number}" for number, name in enumerate(self._talks)}
        wrote = await self._each(lambda name: self._talks[name].ask(ANSWER_SECONDS, "write_token", output=output, name=names[name]))
        if any("problem" in answer for answer in wrote.values()) or len(wrote) < len(names):
            return  # which the recipe's checks have told
        seen = await self._each(
            lambda name: self._talks[name].ask(
                ANSWER_SECONDS, "see_tokens", output=output, names=list(names.values()), patience=SHARED_SECONDS
            )
        )
        self._found.add(judge.tokens(names, {name: seen.get(name, {}).get("seen", []) for name in names}, output))

    async def _door(self) -> str:
        """The address where ranks would meet; looks whether its port is free and whether the other hosts get there."""
        leader, *others = self._talks
        addresses = self._found.facts[leader]["networks"]["addresses"]
        master, port = self._plan.master_addr or next(iter(addresses), leader), self._plan.master_port
        opened = (await self._each(lambda name: self._talks[name].ask(ANSWER_SECONDS, "listen", port=port), [leader])).get(leader)
        if opened is None:
            return master
        if "problem" in opened:
            self._found.add({leader: [f"{opened['problem']}; another process, perhaps another run, has it: --master_port {port + 1}"]})
        tried = list(dict.fromkeys([master, leader, *addresses]))
        answers = await self._each(
            lambda name: self._talks[name].ask(ANSWER_SECONDS, "knock", addresses=tried, port=opened["port"]), others
        )
        self._found.add(judge.reached({name: answer["reached"] for name, answer in answers.items()}, master, leader))
        await self._each(lambda name: self._talks[name].ask(ANSWER_SECONDS, "leave"), [leader])
        return master

    async def _links(self, master: str) -> None:
        names = list(self._talks)
        answers = await self._each(
            lambda name: self._talks[name].ask(
                LINKS_SECONDS, "links", rank=names.index(name), world=len(names), address=master, port=self._plan.master_port
            )
        )
        for name, answer in answers.items():
            self._found.backend = answer["backend"]
            self._found.facts[name]["losses"] = answer["losses"]
            self._found.links |= {(name, names[peer]): (speed, latency) for peer, speed, latency in answer["links"]}
        if len(answers) == len(names):
            self._found.add(judge.losses({name: answer["losses"] for name, answer in answers.items()}))
