"""The commands of docs/checkpoints.md, run as they are written."""

import json
import sys

import pytest

from megatron_ngpt.monitor.metrics import read_metrics
from tests.documents import ROOT, blocks, run, run_shell


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

    saving, resuming, using = (run_shell(tmp_path, block) for block in blocks("checkpoints.md", "bash"))
    assert "step-00000004" in saving and "step-00000008" in saving and "complete, latest" in saving
    assert "continues from runs/walk/checkpoints/step-00000008" in resuming
    assert "parallel.tensor: 1 → 2" in resuming and "step-00000012: good" in resuming
    evaluated = json.loads(next(line for line in resuming.splitlines() if line.startswith("{")))
    assert evaluated["tokens"] == 4 * 8 * 256 and 3 < evaluated["loss"] < 6
    assert "trained to step 2" in using
    assert [line["step"] for line in read_metrics(tmp_path / "runs" / "walk", "loss")] == list(range(1, 13))
    (written,) = blocks("checkpoints.md", "python")
    told = run(tmp_path, [sys.executable, "-c", written])
    assert "def main" in told and "import" in told
