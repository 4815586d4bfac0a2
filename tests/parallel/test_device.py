"""Where compiled code is kept, and freed memory."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from megatron_ngpt.parallel.device import keep_compiled_code_by_processor


def test_processors_of_two_kinds_share_no_compiled_code(monkeypatch, tmp_path):
    kept = []
    for kind in ("AVX512", "AVX512", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        keep_compiled_code_by_processor()
        keep_compiled_code_by_processor()  # in a process that this one started
        kept.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
    assert kept == [tmp_path / "avx512", tmp_path / "avx512", tmp_path / "avx2"]
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code_by_processor()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent.name == f"torchinductor_{os.getuid()}"


FAULTS = """
import resource, torch
{first}
def pages(numbers: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages(1 << 26)
print(pages(1 << 25))
"""


def test_freed_memory_is_not_met_anew_page_by_page():
    """128 MiB after 256: 32,768 pages where the C library does as it likes."""

    def pages(first: str) -> int:
        script = FAULTS.format(first=first)
        return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout)

    kept = "from megatron_ngpt.parallel.device import keep_freed_memory\nkeep_freed_memory()"
    assert pages("") > 10_000 > 100 * pages(kept)
