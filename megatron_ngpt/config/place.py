"""Which rank this process is, as its launcher says in the environment: deepspeed, torchrun, srun, mpirun, or none for a single rank.

Only what a launcher set for this very process counts. The shell that sbatch or salloc opens has some of Slurm's variables too, and is no
rank; neither are shells with a WORLD_SIZE that somebody exported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_ngpt.errors import ConfigError

TORCH = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
SLURM = {"rank": "SLURM_PROCID", "world": "SLURM_STEP_NUM_TASKS", "local_rank": "SLURM_LOCALID"}
OPEN_MPI = {"rank": "OMPI_COMM_WORLD_RANK", "world": "OMPI_COMM_WORLD_SIZE", "local_rank": "OMPI_COMM_WORLD_LOCAL_RANK"}
FIRST_SPECIAL_STEP = 2**32 - 16  # Slurm counts a job's steps from 0; the batch shell's and the interactive shell's numbers are up here
HOSTS = ("CROSS_SIZE", "GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES")  # deepspeed, torchrun, srun


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
    if "RANK" in environment:  # all launchers set it but srun, and under torchrun in srun's tasks it is the one that counts
        names = TORCH
    elif _is_task(environment):
        names = SLURM
        environment = {SLURM["world"]: environment.get("SLURM_NTASKS", ""), **environment}
    elif OPEN_MPI["rank"] in environment and environment.get("MASTER_ADDR"):  # mpirun says who a process is, and not where they meet
        names = OPEN_MPI
    else:
        return Place()
    rank, world = _number(environment, names["rank"]), _number(environment, names["world"])
    if local_rank is None:
        local_rank = _number(environment, names["local_rank"]) if world > 1 or names["local_rank"] in environment else 0
    place = Place(rank, world, local_rank)
    if not 0 <= place.rank < place.world:
        raise ConfigError(f"{names['rank']} = {place.rank}: must be 0 to {place.world - 1} ({names['world']} = {place.world})")
    return place


def variables(place: Place, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch.distributed reads, as far as `environment` lacks them or says something else of this rank.

    Under Slurm the first host of the step leads, on a port that follows from the job's and the step's number, so that all hosts agree.
    Raises ConfigError for a MASTER_PORT that is none.
    """
    own = {"RANK": str(place.rank), "WORLD_SIZE": str(place.world), "LOCAL_RANK": str(place.local_rank)}
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    leader = {
        "MASTER_ADDR": first_host(hosts) if place.world > 1 else "127.0.0.1",
        "MASTER_PORT": _slurm_port(environment) or "29500",
    }
    port = environment.get("MASTER_PORT", leader["MASTER_PORT"])
    if place.world > 1 and not (port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"MASTER_PORT = {port!r}: must be a whole number from 1 to 65535")
    lacking = {name: value for name, value in leader.items() if not environment.get(name)}
    return {name: value for name, value in own.items() if environment.get(name) != value} | lacking


def hosts(environment: Mapping[str, str], place: Place) -> str:
    """Who is there, for people: `8 ranks on 2 hosts`; without the hosts where the launcher does not tell."""
    ranks = f"{place.world} rank{'s' if place.world > 1 else ''}"
    count = next((environment[name] for name in HOSTS if environment.get(name, "").isdigit()), "" if place.world > 1 else "1")
    return f"{ranks} on {count} host{'s' if count != '1' else ''}" if count else ranks


def devices(environment: Mapping[str, str]) -> str:
    """What each rank trains on, as far as can be told before torch is imported: `a GPU each` or `on CPUs`."""
    gpus = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()
    return "a GPU each" if gpus and environment.get("DS_ACCELERATOR") != "cpu" else "on CPUs"


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process as a task of a step."""
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID", "")
    return "SLURM_PROCID" in environment and step.isdigit() and int(step) < FIRST_SPECIAL_STEP


def _slurm_port(environment: Mapping[str, str]) -> str | None:
    """Of a job's step: neighbouring jobs, and steps of one job that run at the same time, have ports of their own."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "0")
    return str(20000 + (int(job) + 1009 * int(step)) % 10000) if job.isdigit() and step.isdigit() else None


def first_host(hosts: str) -> str:
    """The first host of a Slurm list such as `gpu[03-05,9],login1`: `gpu03`; this host where the list is empty."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in match.groups()) or "127.0.0.1"


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        raise ConfigError(
            f"{name}: missing from the environment; a launcher sets rank, world size and local rank together; "
            "for a run of one rank, unset RANK"
        )
    if not re.fullmatch(r"\d+", value):
        raise ConfigError(f"{name} = {value!r}: must be a whole number")
    return int(value)
