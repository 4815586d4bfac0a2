"""The files of an export: whole or absent, written piece by piece in bounded memory."""

import errno
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from megatron_ngpt.checkpoint import export as export_module
from megatron_ngpt.checkpoint.export import export, exported_blocks
from megatron_ngpt.checkpoint.exported_tensors import write_tensors
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Model
from megatron_ngpt.errors import CheckpointError, DamagedError
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.trained import SHAPE, exported, make_model, save_run

V, D = 33, 24


def test_output_is_whole_or_absent(tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_run(run, make_model())

    written = []

    def no_space(stored, record, dtype):
        written.append(record.name)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return exported_blocks(stored, record, dtype)

    monkeypatch.setattr(export_module, "exported_blocks", no_space)
    with pytest.raises(CheckpointError, match="could not be written: No space left on device"):
        export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_damaged_checkpoint_leaves_nothing_and_a_run_has_the_one_before_it(tmp_path):
    store = CheckpointStore(tmp_path / "run", 2, 0)
    checkpoint = save_run(tmp_path / "run", make_model())
    older, newer = make_model(seed=1), make_model(seed=2)
    for step, module in ((4, older), (5, newer)):
        store.save(step, shards_of(module), None, {**read_state(checkpoint), "step": step})
        newest = store.wait().path
    tensors = sorted(newest.glob("*.distcp"))[0]
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(DamagedError):
        export(newest, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    export(tmp_path / "run", tmp_path / "out")
    embedding = shards_of(older)["model.embed_tokens.weight"].master.view(V, D)
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].equal(embedding)


def test_blocks_are_the_tensor(tmp_path, monkeypatch):
    """A tensor that is written in several blocks reads as one."""
    _, whole, _ = exported(tmp_path, make_model(), "whole", dtype="bfloat16")
    monkeypatch.setattr(export_module, "BLOCK_ENTRIES", 100)
    stored = torch.arange(24.0 * 40).view(40, 24)
    down = parameter_table(Model(**SHAPE), 33)["model.layers.0.mlp.down_proj.weight"]
    assert len(list(exported_blocks(stored, down, torch.float32))) == 12
    _, pieces, _ = exported(tmp_path, make_model(), "pieces", dtype="bfloat16")
    assert whole.keys() == pieces.keys() and all(pieces[name].equal(tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_start_aligned_whatever_their_names(tmp_path, length):
    file, tensor = tmp_path / "model.safetensors", torch.arange(6.0).view(2, 3)
    write_tensors(file, {"x" * length: (2, 3)}, torch.float32, lambda _: tensor.split(1))
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    assert load_file(file)["x" * length].equal(tensor)


MEMORY = """
import re, sys
from pathlib import Path
from megatron_ngpt.checkpoint.export import export

def most():
    "Bytes this process has ever held; getrusage would begin with those of the process that started it."
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

small, large = map(Path, sys.argv[1:])
export(small, small / "exported")
before = most()
export(large, large / "exported", dtype="bfloat16")
print(most() - before)
"""


def test_memory_does_not_grow_with_the_number_of_tensors(tmp_path):
    """The largest tensor has 4 MB; what grows, by up to some 40 MB at any number of layers, is what the allocator keeps."""
    for name, layers in (("small", 1), ("large", 30)):
        save_run(tmp_path / name, make_model(layers=layers, hidden=256, ffn=4096))
    run = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True, check=True)
    size = (tmp_path / "large" / "exported" / "model.safetensors").stat().st_size
    assert size > 200e6 and int(run.stdout) < 80e6
