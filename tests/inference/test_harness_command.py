"""`ngpt harness`: what it prints and writes, and what it refuses before the work."""

import json
import shutil
import subprocess
import sys

import pytest

from megatron_ngpt import cli
from tests.checkpoint.hostile import plain, put, zipped
from tests.inference.lab import COMMON, TASKS


def test_data_that_is_not_there(lab, own_tasks_alone, monkeypatch, capsys, tmp_path):
    head = COMMON.format(data=tmp_path / "gone.jsonl", cache=tmp_path)
    (tmp_path / "gone.yaml").write_text(f"task: gone\n{head}{TASKS['tiny_choice']}")
    monkeypatch.setattr(sys, "argv", ["ngpt", "harness", str(lab.run), "--tasks", "gone", "--include_path", str(tmp_path)])
    assert cli.main() == 2
    assert "--tasks gone: a task's data could not be read: " in capsys.readouterr().err


def test_command(lab, own_tasks_alone, monkeypatch, capsys, tmp_path):
    options = ["--tasks", "tiny_choice,tiny_wr*", "--include_path", str(lab.directory), "--output", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["ngpt", "harness", str(lab.run), *options, "--limit", "3", "--batch_size", "2"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    assert out.startswith("|") and "|tiny_choice " in out and "|tiny_written" in out and "tiny_text" not in out
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["results"]["tiny_written"]["exact_match,none"] == pytest.approx(2 / 3)
    monkeypatch.setattr(sys, "argv", ["ngpt", "harness", str(lab.run), *options, "--tasks", "nothing"])
    assert cli.main() == 2
    assert capsys.readouterr().err.startswith("--tasks nothing: lm-eval has no such task")


@pytest.mark.parametrize(("options", "said"), [
    (["--include_path", "gone"], "--include_path gone: no such directory"),
    (["--output", "gone/r.json"], "--output gone/r.json: no directory gone"),
    (["--output", "."], "--output .: is a directory; give a file in it, such as results.json"),
    (["--output", "/proc/r.json"], "--output /proc/r.json: cannot write in /proc"),
])
def test_paths_that_are_not_there(monkeypatch, capsys, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ngpt", "harness", "run", "--tasks", "x", *options])
    assert cli.main() == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_hostile_checkpoint_is_not_run(lab, own_tasks_alone, monkeypatch, capsys, tmp_path):
    shutil.copytree(lab.run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    put(checkpoint, ".metadata", plain(tmp_path / "marker"))
    put(checkpoint, "__0_0.distcp", zipped(tmp_path / "marker"))
    command = ["ngpt", "harness", str(tmp_path / "run"), "--tasks", "tiny_choice", "--include_path", str(lab.directory)]
    monkeypatch.setattr(sys, "argv", command)
    assert cli.main() == 1 and "__0_0.distcp holds no tensor" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['lm_eval'] = None; sys.argv = ['ngpt', 'harness', 'run', '--tasks', 'x']\n"
        "from megatron_ngpt.cli import main; sys.exit(main())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.strip().splitlines()[-1] == "ngpt harness: lm-eval is not installed; pip install -e '.[eval]'"
