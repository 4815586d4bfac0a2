"""Where the ranks compute and how they talk: CUDA and nccl, or, in this one place, the CPU and gloo."""

import os

import torch
import torch.distributed as dist


def choose_device() -> torch.device:
    """This rank's device. Also tells DeepSpeed, which reads `DS_ACCELERATOR` when it is first imported: call it before."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.device("cpu")


def start_process_group(device: torch.device) -> None:
    """Join the process group that the environment describes; without a description, one of this process alone.

    Each launcher's environment is completed to RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT by `training.entry`.
    """
    import deepspeed

    if dist.is_initialized():
        return
    if os.environ.get("WORLD_SIZE", "1") == "1":
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
        store = dist.HashStore()  # no port that another run on this host could hold
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    # On a CPU DeepSpeed would first compile an all-reduce through shared memory, for a minute, that only its inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)
