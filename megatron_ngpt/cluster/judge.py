"""What the hosts' answers mean: pure functions from answers to lines, each naming what is wrong on one host, and a remedy."""

from collections import Counter
from collections.abc import Mapping
from statistics import median_low

from megatron_ngpt.cluster.hostfile import Host
from megatron_ngpt.console import in_bytes

CLOCKS = 1.0  # seconds that clocks may differ
LOSSES = 1e-5  # relative: processors round differently
SLOW = 0.5  # of the bandwidth that links have
Problems = dict[str, list[str]]
SOURCE = "the code of megatron_ngpt differs from the other hosts'; bring all checkouts to one commit"


def clocks(offsets: Mapping[str, tuple[float, float]]) -> Problems:
    """From (seconds ahead of this process's clock, how far that may be off) of each host: those a second or more from the others'."""
    names = list(offsets)
    usual = median_low(offset for offset, _ in offsets.values()) if len(names) > 2 else offsets[names[0]][0]
    found = {}
    for name, (offset, doubt) in offsets.items():
        if abs(offset - usual) > CLOCKS + doubt:
            whom = "the other hosts'" if len(names) > 2 else f"{names[0]}'s"
            found[name] = [f"its clock is {abs(offset - usual):.1f} s {'ahead of' if offset > usual else 'behind'} {whom}; let NTP set it"]
    return found


def alone(host: Host, facts: Mapping) -> list[str]:
    """What one host's answer says by itself."""
    found = list(facts["problems"])
    devices, needed = facts["devices"], facts.get("needed", 0)
    if devices["kind"] != "cpu" and devices["count"] < host.slots:
        has = devices["count"]
        found.append(f"has {has} × {devices['kind']}, and the hostfile gives it {host.slots} slots; write slots={has}")
    free = min(devices["free"][: host.slots], default=0) if devices["kind"] != "cpu" else devices["free"][0] / host.slots
    if free < needed:
        found.append(f"{in_bytes(free)} of memory are free for a rank, which needs about {in_bytes(needed)}; end what is running there")
    room = facts.get("room")
    if room and room["free"] < room["asked"]:
        found.append(
            f"training.output = {facts['output']}: {in_bytes(room['free'])} are free; checkpoint.keep = {room['keep']} and one that is "
            f"being written take {in_bytes(room['asked'])} more"
        )
    return found + _interfaces(facts["networks"])


def together(facts: Mapping[str, Mapping]) -> Problems:
    """What is not the same on all hosts: versions, the recipe, tokenizer and data."""
    found: Problems = {name: [] for name in facts}
    for tool in next(iter(facts.values()))["versions"]:
        values = {name: answer["versions"].get(tool, "none") for name, answer in facts.items()}
        for name, usual in _odd(values):
            other = f"{tool} is {values[name]}, on {_the_others(facts)} {usual}; install one version everywhere"
            found[name].append(SOURCE if tool == "source" else other)
    for name, _ in _odd({name: answer["recipe"] for name, answer in facts.items()}):
        found[name].append(f"the recipe reads differently than on {_the_others(facts)}; copy it again")
    for path in dict.fromkeys(path for answer in facts.values() for path in answer["files"]):
        there = {name: answer["files"][path] for name, answer in facts.items() if path in answer["files"]}
        for name, _ in _odd(there):
            found[name].append(f"{path}: its content differs from {_the_others(facts)}; copy it again")
        for name in facts:
            if name not in there and not any(path.removesuffix(".bin").removesuffix(".idx") in line for line in facts[name]["problems"]):
                found[name].append(f"{path}: no such file, and other hosts have it")
    return {name: lines for name, lines in found.items() if lines}


def losses(given: Mapping[str, list[float]]) -> Problems:
    """Hosts with a device on which the known tiny model has another loss than usual."""
    usual = median_low(value for values in given.values() for value in values)
    found = {}
    for name, values in given.items():
        for number, value in enumerate(values):
            if not abs(value - usual) <= LOSSES * abs(usual):
                line = f"device {number} computes a loss of {value:.7f} for a known tiny model, others {usual:.7f}"
                found.setdefault(name, []).append(line)
    return found


def tokens(names: Mapping[str, str], seen: Mapping[str, list[str]], output: str) -> Problems:
    """From the file that each host wrote and those that it sees: hosts whose run directory is not that of the first."""
    first, *others = names
    line = f"training.output = {output}: what {first} writes there is not seen here; choose a file system that all hosts share"
    return {host: [line] for host in others if names[first] not in seen[host]}


def reached(answers: Mapping[str, list[str]], master: str, leader: str) -> Problems:
    """From the addresses of the first host that each of the others reached: those that can't come to where the ranks meet."""
    found = {}
    for host, addresses in answers.items():
        if master in addresses:
            continue
        other = next(iter(addresses), None)
        found[host] = [
            f"can't reach {master}, where the ranks would meet ({leader}'s first address by `hostname -I`); {leader} answers {host} at "
            f"{other}: --master_addr {other}" if other else
            f"can't reach {leader}, where the ranks would meet, at {master}: is a firewall, or another network's interface, in between?"
        ]  # fmt: skip
    return found


def slow(links: Mapping[tuple[str, str], tuple[float, float]]) -> set[tuple[str, str]]:
    """The links whose bandwidth is below half of what the upper tenth have at least."""
    if not links:
        return set()
    speeds = sorted(speed for speed, _ in links.values())
    usual = speeds[(len(speeds) * 9) // 10 if len(speeds) > 9 else -1]
    return {link for link, (speed, _) in links.items() if speed < SLOW * usual}


def _interfaces(networks: Mapping) -> list[str]:
    """Interfaces that the environment asks for and the host lacks, and a name of its own that leads nowhere."""
    found, names = [], networks["names"]
    for variable, value in networks["wanted"].items():
        if variable.startswith("NCCL") and value.startswith("^"):
            continue
        exact = variable.startswith("GLOO") or value.startswith("=")
        for wanted in value.removeprefix("=").split(","):
            if not any(name == wanted or (not exact and name.startswith(wanted)) for name in names):
                found.append(f"{variable} = {value}: has no such network interface; choose of {', '.join(names)} (in .deepspeed_env)")
    if not networks["addresses"]:
        found.append("has no network address (hostname -I); connect it to a network")
    own = networks["own"]
    if own is not None and own.startswith("127.") and "GLOO_SOCKET_IFNAME" not in networks["wanted"]:
        found.append(f"its own name leads to {own} there (/etc/hosts), where gloo would listen; correct that, or name the interface with "
                     "GLOO_SOCKET_IFNAME in .deepspeed_env")
    return found


def _odd(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """(host, the usual value) of each host that has another; where values are equally usual, the first host's counts."""
    if not values:
        return []
    usual = Counter(values.values()).most_common(1)[0][0]
    return [(name, usual) for name, value in values.items() if value != usual]


def _the_others(hosts: Mapping) -> str:
    return "the others" if len(hosts) > 2 else next(iter(hosts))
