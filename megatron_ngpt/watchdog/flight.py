"""torch's flight recorder: on GPUs each rank remembers its last collectives, and writes them down when its watchdog asks."""

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path


def prepare(environment: MutableMapping[str, str], logs: Path, rank: int) -> str:
    """Turn it on for this process, as far as the environment says nothing else; returns the pipe at which it will wait.

    Records go to `logs`/flight-RANK. There is no pipe, and nothing is recorded, where NCCL carries no message.
    """
    stem = str(Path(tempfile.gettempdir()) / f"ngpt-flight-{os.getpid()}-")
    defaults = {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_FR_DUMP_TEMP_FILE": str(logs.absolute() / "flight-"),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": stem,
    }
    for name, value in defaults.items():
        environment.setdefault(name, value)
    return f"{environment['TORCH_NCCL_DEBUG_INFO_PIPE_FILE']}{rank}.pipe"
