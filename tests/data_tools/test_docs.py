"""The commands of docs/data.md, run as they are written."""

import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from megatron_ngpt.monitor.metrics import read_metrics
from tests.documents import ROOT, blocks, run_shell


def commands() -> list[str]:
    """The page's shell blocks, in order."""
    return blocks("data.md", "bash")


@pytest.fixture()
def checkout(tmp_path, source_texts) -> Path:
    """A folder that looks like the repository's root, with a corpus."""
    for name in ("launch", "ds_configs", "megatron_ngpt", "data_tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        lines = [json.dumps({"text": text}) + "\n" for text in source_texts[number::3]]
        (tmp_path / "corpus" / f"{number}.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return tmp_path


def run_all(folder, given) -> str:
    return run_shell(folder, "\n".join(given))


def test_from_compressed_files_to_a_batch(checkout):
    *preparing, training, by_length = commands()
    assert len(preparing) == 4 and training == "python launch/pretrain.py data/first.yaml\n"
    out = run_all(checkout, preparing)
    assert "1000 entries" in out and "6 documents" in out and "are right" in out and "--- row 7: data/text" in out
    assert np.load(checkout / "data" / "step1.npy").shape == (8, 129)
    assert (checkout / "data" / "lengths.png").exists()
    out = run_all(checkout, [by_length])
    assert [line.split(":")[0] for line in out.splitlines()[:3]] == [f"data/text-{part}" for part in ("0-1024", "1024-4096", "4096-up")]
    rows = [line for line in out.splitlines() if line.startswith("--- row")]
    assert len(rows) == 8 and sum("data/text-4096-up" in row for row in rows) in (4, 5), out


@pytest.mark.heavy
def test_to_a_first_training_step(checkout):
    run_all(checkout, commands()[:5])
    assert [line["step"] for line in read_metrics(checkout / "data" / "run", "loss")] == [1, 2]
