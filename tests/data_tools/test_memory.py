"""Memory does not grow with the input: peaks of small and of ten times larger files, each in a process of its own."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

PEAK = r"""
import re, sys
from data_tools.preprocess import Options, preprocess
preprocess(Options([sys.argv[1]], sys.argv[2], sys.argv[3], 1, shuffle_seed=int(sys.argv[4]) if len(sys.argv) > 4 else None))
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])     # ru_maxrss would inherit the parent's
"""
SMALL, LARGE, ALLOWED_MB = 20, 200, 25


def peak_megabytes(*arguments) -> float:
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout) / 1024


def write(kind, path, megabytes) -> Path:
    """A file with so much of JSON or rows, of which little is text."""
    generator = random.Random(0)
    lines = b"".join(
        json.dumps({"text": "some words " * 3, "blob": generator.randbytes(5000).hex()}).encode() + b"\n"
        for _ in range(megabytes * 100)
    )
    if kind == "jsonl.gz":
        lines = gzip.compress(lines, 1)
    elif kind == "jsonl.zst":
        lines = zstandard.compress(lines)
    if kind == "parquet":
        rows = megabytes * 5
        table = pyarrow.table({"text": ["word " * 40] * rows, "id": list(range(rows))})
        pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=rows)
        return path.with_suffix(".parquet")
    path = path.with_suffix(f".{kind}")
    path.write_bytes(lines)
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_preprocess(tmp_path, tokenizer_path, kind):
    peaks = []
    for size in (SMALL, LARGE):
        path = write(kind, tmp_path / f"{size}", size)
        peaks.append(peak_megabytes(path, tokenizer_path, tmp_path / f"out{size}"))
    assert peaks[1] - peaks[0] < ALLOWED_MB, peaks


@pytest.mark.heavy
def test_index_of_many_documents(tmp_path, tokenizer_path):
    """Lengths and offsets are not kept either: 20 times the documents, 32 bytes each in the index."""
    peaks = []
    for count in (50_000, 1_000_000):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b'{"text": "a b"}\n' * count)
        peaks.append(peak_megabytes(path, tokenizer_path, tmp_path / f"out{count}"))
    assert peaks[1] - peaks[0] < ALLOWED_MB, peaks
