"""Where compiled code is kept."""

import os
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
