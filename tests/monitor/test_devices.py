"""What is said of a device: its peak by its name, or measured, and memory."""

import psutil
import pytest
import torch

from megatron_ngpt.monitor import devices

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name, dtype, peak", [
    ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12), ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
    ("NVIDIA GH200 480GB", torch.float32, 67e12), ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5e12), ("NVIDIA A10G", torch.bfloat16, 70e12),
])  # fmt: skip
def test_peaks_by_name(monkeypatch, name, dtype, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert devices.peak_flops(CUDA, dtype) == peak


def test_no_name_hides_one_after_it():
    """The first that fits counts, so a name that is part of another comes after it."""
    names = list(devices.PEAKS)
    assert [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b] == []


def test_what_is_not_known_is_measured(monkeypatch):
    assert devices.peak_flops(torch.device("cpu"), torch.float32) > 1e8
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device of tomorrow")
    monkeypatch.setattr(devices, "measured_flops", lambda device, dtype: 7.0)
    assert devices.peak_flops(CUDA, torch.bfloat16) == 7.0


def test_memory_of_a_process_without_a_gpu():
    peak, reserved, host, available = devices.memory(torch.device("cpu"))
    assert peak == reserved == 0.0
    assert host == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.2)
    assert 0 < available <= psutil.virtual_memory().total / 2**30
