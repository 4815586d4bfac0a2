"""What a rank learns about the launcher above it."""

import os
import subprocess
import sys

import pytest

from megatron_ngpt.training.launcher import missing_hostfile

LAUNCHER = """import subprocess, sys
code = "from megatron_ngpt.training.launcher import missing_hostfile; print(missing_hostfile())"
between = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"  # as deepspeed.launcher.launch stands between
subprocess.run([sys.executable, "-c", between, code])
"""
SAID = "['--hostfile gone: no such file, and deepspeed has started the ranks of this host alone; give the list of hosts']"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize(("name", "options", "said"), [
    ("deepspeed", ["--hostfile", "gone", "x.py"], SAID),
    ("deepspeed", ["--quiet", "--hostfile=gone"], SAID),
    ("deepspeed", ["-H", "gone"], SAID),
    ("deepspeed", ["--hostfile", "hosts"], "[]"),
    ("deepspeed", ["--num_gpus", "2"], "[]"),
    ("other", ["--hostfile", "gone"], "[]"),
])
def test_a_host_file_that_is_not_there_is_seen_from_a_rank(tmp_path, name, options, said):
    (tmp_path / name).write_text(LAUNCHER)
    (tmp_path / "hosts").write_text("node1 slots=1\n")
    command = [sys.executable, str(tmp_path / name), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=60)
    assert done.stdout.strip() == said, done.stderr


def test_without_a_launcher_nothing_is_said():
    assert missing_hostfile() == []
