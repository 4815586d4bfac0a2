"""Another processor rounds otherwise, and proves the same: kernels for less than this one, another order of sums, two threads.

Heavy or long: every imitation is a process of its own, as the variables are read when torch is imported.
"""

import os
import platform
import re
import subprocess
import sys

import pytest

from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import LAYOUTS
from tests.worst import worst

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the variables are those of x86's libraries"),
]
IMITATIONS = {  # variables, what torch says of itself then, threads
    "AVX2": ({"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2", 1),
    "SSE4": ({"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "DEFAULT", 1),
    "MKL's order for any processor": ({"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, r"\w+", 1),
    "two threads": ({"OMP_NUM_THREADS": "2"}, r"\w+", 2),
}
IN_CI = ("AVX2", "SSE4")  # whose kernels are the most different
MARGIN = 1e-6  # a tenth of what the table allows
ROWS = [  # one row at least of every variant, and of every way to cut
    "data 3, ZeRO-3, all cut",
    "tensor 2, hidden-sharded, sequence",
    "tensor 3, hidden-sharded",
    "pipeline 2 × tensor 2 × data 2, ZeRO-1",
    "odd vocabulary: tensor 2",
    "odd vocabulary: pipeline 2 × tensor 2, ZeRO-1",
    "grouped queries: tensor 2 × data 2, ZeRO-2",
    "slerp: tensor 2 × data 2, sequence, ZeRO-2",
    "tangent: data 3, ZeRO-3, all cut",
    "masked blend: pipeline 2 × tensor 2",
    "narrow keys and values: data 6, ZeRO-3, all cut (a row on three ranks)",
    "context 3 × data 2, ring, ZeRO-3, all cut",
    "two key/value heads: context 4, ulysses",
    "masked blend: context 4, ring",
    "gpt: tensor 2 × data 2, hidden-sharded, ZeRO-2",
]
NUMBERS = ["inference/test_generate.py", "inference/test_layouts.py", "inference/test_evaluate.py", "checkpoint/test_hub_model.py",
           "checkpoint/test_hub_llama.py", "checkpoint/test_hub_rope.py", "model/test_equations.py", "model/test_rotary.py",
           "sphere/test_geometry.py", "sphere/test_renormalise.py", "parallel/test_head_loss.py", "parallel/test_ring.py",
           "training/test_optimizer.py"]  # fmt: skip
DIGEST = """
import hashlib, numpy, torch
x = torch.from_numpy(numpy.random.RandomState(0).standard_normal((640, 200)).astype(numpy.float32))
print(hashlib.sha1(b"".join(y.numpy().tobytes() for y in (x @ x.t(), x.softmax(-1), x.sum()))).hexdigest())
"""


def run(name: str, *command: str) -> str:
    """What a command of this Python prints on the imitated processor."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | IMITATIONS[name][0]
    done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def each(*names: str) -> list:
    """The names as a test's parameters, each with its marker."""
    return [pytest.param(name, marks=pytest.mark.heavy if name in IN_CI else pytest.mark.long) for name in names]


@pytest.mark.heavy
def test_each_imitation_computes_other_numbers():
    assert len({run(name, "-c", DIGEST) for name in IMITATIONS}) == len(IMITATIONS)


@pytest.mark.parametrize("name", each(*IMITATIONS))
def test_layouts_stray_no_farther_than_a_tenth_of_the_limits(name):
    assert {layout.variant for layout in LAYOUTS} == {layout.variant for layout in LAYOUTS if layout.name in ROWS}
    _, kernels, threads = IMITATIONS[name]
    ranks = {layout.name: layout.ranks for layout in LAYOUTS}
    rows = [row for row in ROWS if threads == 1 or ranks[row] <= 2]  # threads that have no core of their own spin
    printed = run(name, "-m", "tests.distributed.layouts", "--only", *rows)
    told = re.search(
        rf"The worst of {len(rows)} rows, with {kernels} and {threads} thread\(s\) a rank: "
        r"loss (\S+), gradient norm (\S+), weights (\S+)$", printed, re.MULTILINE,
    )  # fmt: skip
    assert told, printed
    assert worst(map(float, told.groups())) <= MARGIN, printed


@pytest.mark.parametrize("name", each("AVX2", "SSE4", "MKL's order for any processor"))
def test_whatever_compares_trained_numbers_passes(name):
    printed = run(name, "-m", "pytest", "-q", "-x", "-m", "not heavy", "-p", "no:cacheprovider", *(f"tests/{path}" for path in NUMBERS))
    assert re.search(r"^\d+ passed", printed, re.MULTILINE), printed
