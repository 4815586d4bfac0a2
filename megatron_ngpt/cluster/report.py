"""What a person reads of a preflight: a line a host, then the links as a table."""

from collections.abc import Mapping

from megatron_ngpt.cluster import judge
from megatron_ngpt.cluster.hostfile import Host
from megatron_ngpt.console import in_bytes

SHOWN = 36  # links; of more only the slow ones


def lines(hosts: list[Host], problems: Mapping[str, list[str]], facts: Mapping[str, dict]) -> list[str]:
    """A line a host; what is wrong on all of them is one line before."""
    of_each = [problems.get(host.name, []) for host in hosts]
    everywhere = [line for line in of_each[0] if len(hosts) > 1 and all(line in lines for lines in of_each)]
    width = max(len(host.name) for host in hosts)
    found = [f"{'all':<{width}}  WRONG  {line}" for line in everywhere]
    for host in hosts:
        own = [line for line in problems.get(host.name, []) if line not in everywhere]
        if own:
            found.append(f"{host.name:<{width}}  WRONG  {' | '.join(own)}")
        elif host.name in facts:
            found.append(f"{host.name:<{width}}  ok     {_about(host, facts[host.name])}")
        else:
            found.append(f"{host.name:<{width}}  ok     answers")
    return found


def table(links: Mapping[tuple[str, str], tuple[float, float]], backend: str) -> list[str]:
    """Bandwidth and latency of each link, the slow ones marked."""
    if not links:
        return []
    marked = judge.slow(links)
    shown = {link: value for link, value in sorted(links.items()) if len(links) <= SHOWN or link in marked}
    width = max((len(" - ".join(link)) for link in shown), default=0)
    found = [f"{len(links)} link{'s' if len(links) > 1 else ''}, one rank a host, {backend}: MB/s, and µs one way"]
    for link, (speed, latency) in shown.items():
        mark = "  slow" if link in marked else ""
        found.append(f"{' - '.join(link):<{width}}  {speed / 1e6:>9,.1f}  {latency * 1e6:>7,.0f}{mark}")
    return found


def _about(host: Host, facts: dict) -> str:
    versions, devices = facts["versions"], facts["devices"]
    free = min(devices["free"])
    room = f" · {in_bytes(facts['room']['free'])} free for checkpoints" if "room" in facts else ""
    loss = f" · tiny model's loss {facts['losses'][0]:.6f}" if "losses" in facts else ""
    tools = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "deepspeed", "nccl") if name in versions)
    kind = f"{devices['count']} cores" if devices["kind"] == "cpu" else f"{devices['count']} × {devices['kind']}"
    return (
        f"{host.slots} rank{'s' if host.slots > 1 else ''} on {kind}, {in_bytes(free)} free · {tools} · "
        f"clock {facts['clock']:+.2f} s{room}{loss}"
    )
