"""Which rank this process is, as its launcher says in the environment: deepspeed, torchrun, srun, or none for a single rank."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_ngpt.errors import ConfigError

TORCH = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
SLURM = {"rank": "SLURM_PROCID", "world": "SLURM_NTASKS", "local_rank": "SLURM_LOCALID"}


@dataclass(frozen=True)
class Place:
    """This process's rank of `world`, and its number on its host."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def read_place(environment: Mapping[str, str], local_rank: int | None = None) -> Place:
    """The place that the environment names; `local_rank` is the launcher's `--local_rank`, where it gave one.

    Raises ConfigError where the variables are incomplete or contradict each other.
    """
    names = TORCH if "RANK" in environment or "WORLD_SIZE" in environment else SLURM
    if names is SLURM and "SLURM_PROCID" not in environment:
        return Place()
    place = Place(
        _number(environment, names["rank"]),
        _number(environment, names["world"]),
        _number(environment, names["local_rank"]) if local_rank is None else local_rank,
    )
    if not 0 <= place.rank < place.world:
        raise ConfigError(f"{names['rank']} = {place.rank}: must be 0 to {place.world - 1} ({names['world']} = {place.world})")
    return place


def variables(place: Place, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch.distributed reads, as far as `environment` lacks them.

    Under Slurm the first host of the job leads, on a port that follows from the job's number, so that all hosts agree.
    """
    job = environment.get("SLURM_JOB_ID", "")
    wanted = {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(place.local_rank),
        "MASTER_ADDR": first_host(environment.get("SLURM_JOB_NODELIST", "")) if place.world > 1 else "127.0.0.1",
        "MASTER_PORT": str(20000 + int(job) % 10000) if job.isdigit() else "29500",
    }
    return {name: value for name, value in wanted.items() if name not in environment}


def first_host(hosts: str) -> str:
    """The first host of a Slurm list such as `gpu[03-05,9],login1`: `gpu03`; this host where the list is empty."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in match.groups()) or "127.0.0.1"


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        raise ConfigError(f"{name}: missing from the environment; a launcher sets rank, world size and local rank together")
    if not re.fullmatch(r"\d+", value):
        raise ConfigError(f"{name} = {value!r}: must be a whole number")
    return int(value)
