"""What a result needs beside its numbers: the machine and the command that made it; and how memory is measured."""

import gc
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


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


def peak_bytes(work: Callable[[], T]) -> tuple[int, T]:
    """The most bytes that torch's allocator on the CPU has at once while `work` runs, beyond those before, and what it returns: by the
    profiler's record, so exact, and the same on any machine."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = work()
    moves = [(event.start_ns(), event.nbytes()) for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return int(np.cumsum([nbytes for _, nbytes in sorted(moves, key=lambda move: move[0])]).max()), result


def write(path: Path, result: dict) -> None:
    """The result with the machine, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": describe(), **result}, indent=1) + "\n")
