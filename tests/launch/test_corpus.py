"""The quickstart's corpus: real text from this Python, nothing of it both trained on and validated with."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "corpus.py"


def test_corpus(tmp_path):
    subprocess.run([sys.executable, SCRIPT, tmp_path / "data"], check=True, capture_output=True)
    train, valid = (
        [json.loads(line)["text"] for line in (tmp_path / "data" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "valid")
    )
    assert sum(map(len, train)) > 5_000_000
    assert not set(train) & set(valid)
    assert 0.005 < len(valid) / len(train) < 0.05
    assert any("class JSONDecoder" in text for text in train + valid), "sources"
    assert any(text.startswith('The "with" statement') for text in train + valid), "help topics"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["train.jsonl", "valid.jsonl"]
