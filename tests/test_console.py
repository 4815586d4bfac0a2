"""Nothing crashes where standard output cannot show every character: what it lacks is replaced."""

import os
import subprocess
import sys

import pytest

from megatron_ngpt.console import in_bytes
from megatron_ngpt.inference.generate import _line
from tests.launch.conftest import ROOT

COMMANDS = {
    "ngpt": ["-m", "megatron_ngpt", "check", "--help"],
    "pretrain": ["launch/pretrain.py", "--help"],
    "data_tools": ["-m", "data_tools", "preprocess", "--help"],
    "reference": ["-m", "megatron_ngpt.config.reference"],
    "log": ["-c", "import sys; from pathlib import Path; from megatron_ngpt.monitor.logs import configure_logging\n"
                  "with configure_logging(Path(sys.argv[1]), 0) as console: print('layers: 1 \\u2192 2', file=console)"],
}


def narrow(encoding: str, locale: str = "C") -> dict[str, str]:
    """An environment whose output has only this encoding's characters, and Python no say in it."""
    return os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_shown_is_replaced(tmp_path, name, encoding):
    command = [sys.executable, *COMMANDS[name], *([str(tmp_path)] if name == "log" else [])]
    done = subprocess.run(command, capture_output=True, env=narrow(encoding), cwd=ROOT, timeout=60)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    if name == "log":
        assert done.stdout == b"layers: 1 ? 2\n"


def test_a_name_that_this_environment_cannot_write_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {tokenizer: a→b, train: [{prefix: gone}]}\ntraining: {output: run}\n", "utf-8")
    command = [sys.executable, "-m", "megatron_ngpt", "check", "recipe.yaml"]
    env = narrow("ascii") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "'a\\u2192b': cannot be written in the encoding ascii of this environment; set LC_ALL=C.UTF-8 or PYTHONUTF8=1, "
        "or choose other characters"]


ENDING = """
import atexit, sys
import torch.distributed
from megatron_ngpt.console import leave

class Kept:
    def __del__(self):
        print("the interpreter's own end")

kept = Kept()
atexit.register(print, "what wants to be done at the end")
print("said", end=" ")
leave(3)
"""


def test_a_process_whose_ranks_talked_ends_with_all_said_and_done_and_not_by_the_interpreters_own_end(tmp_path):
    (tmp_path / "ending.py").write_text(ENDING)
    command = [sys.executable, str(tmp_path / "ending.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    assert (done.returncode, done.stdout) == (3, "said what wants to be done at the end\n"), done.stderr


def test_json_is_escaped_and_loses_nothing(monkeypatch, capsys):
    assert _line("→", "√") == '{"prompt": "→", "text": "√"}'
    sys.stdout.reconfigure(encoding="latin-1")
    assert _line("→", "√") == '{"prompt": "\\u2192", "text": "\\u221a"}'


@pytest.mark.parametrize(("count", "read"), [
    (0, "0 MiB"), (3.6 * 2**20, "4 MiB"), (2**30 - 1, "1024 MiB"), (2**30, "1.0 GiB"), (1234.56 * 2**30, "1,234.6 GiB"),
])
def test_bytes_as_a_person_reads_them(count, read):
    assert in_bytes(count) == read
