"""How many threads a rank computes with on its host: chosen here alone.

Threads that find no core are worse than none: the others spin while they wait for them. So the ranks of a host share its cores.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from megatron_ngpt.config.place import HOSTS, Place
from megatron_ngpt.errors import ConfigError

NAME = "OMP_NUM_THREADS"
# torchrun, deepspeed, mpirun, srun
RANKS_HERE = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE")
CPUS, QUOTA = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup/cpu.max")


def choose_threads(environment: Mapping[str, str], place: Place) -> int:
    """OMP_NUM_THREADS where it is set, or else the host's cores divided by the ranks that it has, 1 at least; no more than the launcher
    has bound this rank to. Raises ConfigError for an OMP_NUM_THREADS that is no number."""
    if not environment.get(NAME):
        return fair_share(environment, place)
    found = re.match(r"[1-9]\d*(?=,|$)", environment[NAME])  # OpenMP's own form: what follows a comma is for nested regions
    if not found:
        raise ConfigError(f"{NAME} = {environment[NAME]!r}: must be a whole number from 1 on; or unset it, and the ranks share the cores")
    return int(found[0])


def fair_share(environment: Mapping[str, str], place: Place) -> int:
    """The threads of a rank where nobody says otherwise."""
    return max(1, min(own_cores(), shared_cores() // ranks_here(environment, place)))


def crowded(environment: Mapping[str, str], place: Place) -> str | None:
    """A line if this host's ranks have more threads than it has cores."""
    threads, ranks, cores, fair = (
        choose_threads(environment, place), ranks_here(environment, place), shared_cores(), fair_share(environment, place)
    )  # fmt: skip
    if ranks * threads <= cores and threads <= max(1, own_cores()):
        return None
    each = f"{ranks} rank{'s' if ranks > 1 else ''} with {threads} thread{'s' if threads > 1 else ''} each"
    remedy = f"unset {NAME}, or {NAME}={fair}" if threads > fair else "fewer ranks would be faster"
    return f"warning: {each} on {cores} core{'s' if cores > 1 else ''} of this host, where they wait for each other; {remedy}"


def ranks_here(environment: Mapping[str, str], place: Place) -> int:
    """Ranks on this host: as the launcher says, or else an even share of all, or all."""
    for name in RANKS_HERE:
        if found := re.match(r"\d+", environment.get(name, "")):
            return max(1, min(place.world, int(found[0])))
    hosts = next((int(environment[name]) for name in HOSTS if environment.get(name, "").isdigit()), 1)
    return max(1, -(-place.world // max(1, hosts)))


def own_cores() -> int:
    """Cores that this process may use."""
    return _cores(_allowed(0))


def shared_cores() -> int:
    """Cores that the ranks of this host share: those of the process that started this one, which may have bound each rank to some of
    its own; no more than the container's quota."""
    cores = _cores(_allowed(0) | _allowed(os.getppid()))
    quota = re.fullmatch(r"(\d+) (\d+)\s*", QUOTA.read_text()) if QUOTA.is_file() else None
    return min(cores, max(1, int(quota[1]) // int(quota[2]))) if quota else cores


def _allowed(process: int) -> set[int]:
    """The processors that a process may use (0: this one)."""
    try:
        return os.sched_getaffinity(process)
    except (AttributeError, OSError):  # no such call on this system, or the process has ended
        return set(range(os.cpu_count() or 1)) if process == 0 else set()


def _cores(processors: set[int]) -> int:
    """Of processors that are two threads of one core, one is counted."""
    paths = [CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in processors]
    return len({path.read_text() if path.is_file() else str(path) for path in paths})
