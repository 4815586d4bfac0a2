"""What a device can do at best, and the memory that is in use."""

import time

import psutil
import torch

GIB = 2**30
# Dense TFLOP/s by the makers' data sheets: bf16 (before Ampere: fp16), and fp32 outside the matrix units. The first name that fits counts.
PEAKS = {
    "B300": (2250, 75), "B200": (2250, 75), "GH200": (989, 67), "H200": (989, 67), "H100 PCIe": (756, 51), "H100 NVL": (835, 60),
    "H800": (989, 67), "H100": (989, 67), "H20": (148, 44), "A100": (312, 19.5), "A800": (312, 19.5), "A40": (149.7, 37.4),
    "A30": (165, 10.3), "A10G": (70, 35), "A10": (125, 31.2), "RTX A6000": (154.8, 38.7), "RTX 6000 Ada": (364, 91.1), "L40S": (362, 91.6),
    "L40": (181, 90.5), "L4": (121, 30.3), "RTX 5090": (209.5, 104.8), "RTX 4090": (165.2, 82.6), "RTX 3090": (71, 35.6),
    "V100": (125, 15.7), "T4": (65, 8.1), "MI355X": (2516, 157.3), "MI325X": (1307, 163.4), "MI300X": (1307, 163.4),
    "MI250X": (191.5, 23.9),
}  # fmt: skip


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The FLOP/s of matrix products in `dtype` that the device could reach at best: by `PEAKS` where it is in there, else measured now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in PEAKS.items() if part in name), None)
        if known:
            return known[dtype == torch.float32] * 1e12
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of three large products: a moment's work, once at the start of a run."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def memory(device: torch.device) -> tuple[float, float, float, float]:
    """GiB of this rank: (device's peak since the last call, device's reserved by torch; 0 on a CPU), (host's, of this process; host's that
    are still available to anyone)."""
    peak = reserved = 0.0
    if device.type == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(device) / GIB, torch.cuda.memory_reserved(device) / GIB
        torch.cuda.reset_peak_memory_stats(device)
    return peak, reserved, psutil.Process().memory_info().rss / GIB, psutil.virtual_memory().available / GIB
