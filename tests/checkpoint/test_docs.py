"""The commands of docs/checkpoints.md, run as they are written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "checkpoints.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The page's blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def run(folder: Path, command: list[str]) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_from_a_run_to_a_text(corpus, tmp_path):
    for name in ("launch", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    data = tmp_path / "runs" / "quickstart-data"
    data.mkdir(parents=True)
    for ours, theirs in (("a", "train"), ("b", "valid")):
        for ending in ("bin", "idx", "meta.json"):
            (data / f"{theirs}.{ending}").symlink_to(corpus / f"{ours}.{ending}")
    (data / "tokenizer.model").symlink_to(corpus / "tokenizer.model")

    saving, resuming, using = (run(tmp_path, ["bash", "-euo", "pipefail", "-c", block]) for block in blocks("bash"))
    assert "step-00000004" in saving and "step-00000008" in saving and "complete, latest" in saving
    assert "continues from runs/walk/checkpoints/step-00000008" in resuming
    assert "parallel.tensor: 1 → 2" in resuming and "step-00000012: good" in resuming
    evaluated = json.loads(next(line for line in resuming.splitlines() if line.startswith("{")))
    assert evaluated["tokens"] == 4 * 8 * 256 and 3 < evaluated["loss"] < 6
    assert "trained to step 2" in using
    losses = [json.loads(line) for line in (tmp_path / "runs" / "walk" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == list(range(1, 13))
    (written,) = blocks("python")
    told = run(tmp_path, [sys.executable, "-c", written])
    assert "def main" in told and "import" in told
