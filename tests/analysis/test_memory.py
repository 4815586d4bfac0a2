"""What an analysis has in memory is a few copies of the largest matrix, however many layers there are."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_ngpt.analysis.analyze import analyse
from megatron_ngpt.analysis.embeddings import embedding
from megatron_ngpt.analysis.matrices import spectra
from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.checkpoint.exported import CONFIG, TENSORS, make_config
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Model
from tests.distributed.corpus import REPOSITORY

MODEL = Model(arch="gpt", layers=12, hidden=256, heads=4, ffn=1024, context=16, vocab=512)
LARGEST = 8 * 256 * 1024  # bytes of a feed-forward matrix in float64
ALL = 4 * 12 * (4 * 256 * 256 + 3 * 256 * 1024)  # of all blocks in fp32


def growth(path: str) -> int:
    """Bytes that this process had in use at most while it analysed the model at `path`, beyond those with which it had analysed a layer and
    an embedding; a mapped file's, which the system takes back at any time, are not among them."""
    weights, most, done = Weights(Path(path), "model"), [], threading.Event()
    list(spectra(weights, 0))
    embedding(weights, "input")

    def watch():
        while not done.wait(0.005):
            most.append(in_use())

    most.append(in_use())
    watcher = threading.Thread(target=watch)
    watcher.start()
    analyse(weights, None, 1)
    done.set()
    watcher.join()
    return max(most) - most[0]


def in_use() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_memory_is_that_of_the_largest_matrix(tmp_path):
    records = parameter_table(MODEL, MODEL.vocab)
    (tmp_path / CONFIG).write_text(json.dumps(make_config(MODEL, MODEL.vocab, "float32", {}, "ignore")))
    save_file({name: torch.randn(record.exported_shape) for name, record in records.items()}, tmp_path / TENSORS)
    # a process of its own: one that was forked also pays for pages that it shared until it touched them
    command = f"from tests.analysis.test_memory import growth; print(growth({str(tmp_path)!r}))"
    grown = int(subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE).stdout)
    assert grown < 5 * LARGEST < ALL / 4
