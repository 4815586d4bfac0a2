"""What a step that is neither logged nor looked at waits for, by the trace of a run's own profile: what docs/monitoring.md states."""

import gzip
import json
from collections import Counter
from math import prod
from pathlib import Path

import pytest

from tests.distributed.layouts import cut, zero
from tests.distributed.ranks import train

pytestmark = pytest.mark.usefixtures("in_repository")
STEP = 5
QUIET = {
    "training.steps": 7, "training.log_every": 7, "monitor.every": 0, "checkpoint.every": 0, "training.profile.steps": f"[{STEP},{STEP}]",
}  # fmt: skip
LAYOUTS = {"zero2": zero(2), "zero3": zero(3), "tensor": cut(2), "pipeline": cut(pipeline=2)}
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")  # of a tensor, by the host
LOSS_AND_NORM, STOP, CUT_ROW, STAGES = 2, 4, 1, 2  # numbers that ranks agree on; the last DeepSpeed's, the loss told to all stages
STATED = {  # DeepSpeed's own reads, and small collectives in order
    "zero2": (0, [LOSS_AND_NORM, CUT_ROW, STOP]), "zero3": (1, [LOSS_AND_NORM, STOP]), "tensor": (0, [LOSS_AND_NORM, STOP]),
    "pipeline": (0, [LOSS_AND_NORM, STAGES, STOP]),
}  # fmt: skip


def trace(output: Path) -> list[dict]:
    """What rank 0 did in the step."""
    [file] = (output / "profiles").glob("*.trace.json.gz")
    found = [event for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"] if event.get("ph") == "X"]
    assert any(event["name"] == f"step {STEP}" for event in found)
    return sorted(found, key=lambda event: event["ts"])


def reads(found: list[dict]) -> Counter:
    """By name. On a CPU the kernel of AdamW reads the verdict itself, from the memory that it computes in: not counted."""
    steps = [event for event in found if event["name"] == "aten::_fused_adamw_"]
    inside = lambda event: any(one["ts"] <= event["ts"] < one["ts"] + one["dur"] for one in steps)  # noqa: E731
    return Counter(event["name"] for event in found if event["name"] in READS and not inside(event))


def agreements(found: list[dict]) -> list[int]:
    """How many numbers those collectives have that have few."""
    sizes = []
    for event in found:
        if event["name"].startswith("c10d::"):
            shapes = event["args"]["Input Dims"][0]
            sizes.append(sum(map(prod, shapes)) if shapes and isinstance(shapes[0], list) else prod(shapes))
    return [size for size in sizes if size <= STOP]


def test_a_quiet_step_waits_for_what_is_stated_alone(corpus, tmp_path):
    runs = []
    for name, keys in LAYOUTS.items():
        options = [f"--{key}={value}" for key, value in (QUIET | {"training.micro_batch": 2} | keys).items()]
        runs.append(([str(corpus / "recipe.yaml"), *options], tmp_path / name))
    train(2, *runs[0], others=runs[1:])
    for name, (of_deepspeed, stated) in STATED.items():
        found = trace(tmp_path / name)
        assert (sum(reads(found).values()), agreements(found)) == (of_deepspeed, stated), (name, reads(found))
