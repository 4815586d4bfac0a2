"""What a result needs beside its numbers: the machine and the command that made it."""

import json
import os
import platform
import shlex
import sys
from pathlib import Path

import torch


def describe() -> dict:
    """Processor, its instruction sets that matter for bf16, cores, versions, and the command."""
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        flags = lines.get("flags", "")
    return {
        "command": "python " + shlex.join(["-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "processor": lines.get("model name", platform.processor()) if flags else platform.processor(),
        "bf16": {name: name in flags.split() for name in ("avx512_bf16", "amx_bf16")},
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(path: Path, result: dict) -> None:
    """The result with the machine, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
