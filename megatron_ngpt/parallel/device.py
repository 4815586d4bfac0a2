"""Where the ranks compute and how they talk: CUDA and nccl, or, in this one place, the CPU and gloo."""

import ctypes
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_ngpt.config.place import read_place
from megatron_ngpt.config.threads import choose_threads
from megatron_ngpt.parallel.meeting import Say, meet

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
MEETING, COLLECTIVES = timedelta(minutes=10), timedelta(minutes=30)  # where nobody says otherwise


def on_gpus() -> bool:
    """Whether ranks compute on CUDA devices: there are some, and DS_ACCELERATOR does not ask for the CPU."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def gpu_versions() -> dict[str, str]:
    """Of `cuda` and `nccl`, as torch brings them; none where it sees no GPU."""
    if not torch.cuda.is_available():
        return {}
    return {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def backend(device: torch.device) -> str:
    """What carries the messages of ranks that compute there."""
    return "nccl" if device.type == "cuda" else "gloo"


def choose_device() -> torch.device:
    """This rank's device. Also tells DeepSpeed, which reads `DS_ACCELERATOR` when it is first imported: call it before; and torch, how many
    threads the host has for this rank."""
    torch.set_num_threads(choose_threads(os.environ, read_place(os.environ)))
    keep_compiled_code_by_processor()
    if on_gpus():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    os.environ["DS_ACCELERATOR"] = "cpu"
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Have the C library keep what torch frees for what it allocates next, as torch's allocator on GPUs does. By itself glibc takes every
    large tensor from the system and gives it back, and each step meets its memory anew, page by page (docs/notes.md)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def keep_compiled_code_by_processor() -> None:
    """Have Inductor keep what it compiles where only processors of this kind look: it would take code that was written for wider vectors,
    by another host with the same directory, and compute wrong numbers with it in silence (torch 2.13)."""
    kind = torch.backends.cpu.get_cpu_capability().lower()
    place = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}")
    if place.name != kind:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place / kind)


def start_process_group(device: torch.device, say: Say, meeting: timedelta = MEETING, collectives: timedelta = COLLECTIVES) -> None:
    """Join the process group that the environment describes; without a description, one of this process alone.

    Each launcher's environment is completed to RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT by `training.entry`.
    `say` is given a line for the person when other ranks keep this one waiting.

    Args:
        meeting: how long a missing rank is waited for.
        collectives: how long a collective of any group may take, where nobody ends the ranks before.

    Raises:
        NgptError: another process has the port, or a rank did not come in time.
    """
    if dist.is_initialized():
        return
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):  # of groups made later, DeepSpeed's too: they do not take the world's
        setattr(dist.distributed_c10d, name, collectives)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
        dist.init_process_group(backend(device), store=dist.HashStore(), rank=0, world_size=1)  # no port that another run could hold
    else:
        store = meet(rank, world, meeting, say)
        # Without `device_id`: with it nccl makes a group by splitting the world, in which every rank must take part for every group.
        dist.init_process_group(backend(device), store=store, rank=rank, world_size=world, timeout=collectives)
    join_deepspeed(device)


def join_deepspeed(device: torch.device) -> None:
    """Have DeepSpeed talk over the process group that there is, with none of its own kernels, which training does not use: it would compile
    test programs to find out which there could be, and then, on a CPU, an all-reduce through shared memory, for a minute."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(backend(device), auto_mpi_discovery=False, verbose=False)
