"""A checkpoint is data, whoever made it: nothing in one is ever run."""

import json
import shutil
import sys
from contextlib import nullcontext

import pytest
import torch

from megatron_ngpt import cli
from megatron_ngpt.checkpoint.dcp import load
from megatron_ngpt.checkpoint.seal import read_checksums
from megatron_ngpt.errors import DamagedError
from megatron_ngpt.parallel.shards import shards_of
from tests.checkpoint.hostile import plain, put, zipped
from tests.checkpoint.trained import make_model

TENSORS = ["evaluate", "generate", "export"]  # the commands that read them
READ_BY = {
    ".metadata": [],
    "__0_0.distcp": ["verify", *TENSORS],
    "tensors.json": ["verify", *TENSORS],
    "tokenizer.model": TENSORS,
}
MAKE = {"pickle": plain, "torch.save": zipped}


@pytest.fixture
def commands(world, tmp_path):
    """Every command that opens a checkpoint, but for the harness, which opens it as they do and takes long to import."""
    run = tmp_path / "run"
    return {
        "list": ["checkpoint", "list", run],
        "verify": ["checkpoint", "verify", run],
        "evaluate": ["evaluate", run, "--data", world.data, "--batches", "1"],
        "generate": ["generate", run, "--prompt", "def ", "--max_tokens", "2"],
        "export": ["export", run, tmp_path / "exported"],
    }


@pytest.mark.parametrize("name", READ_BY)
@pytest.mark.parametrize("form", MAKE)
def test_no_pickle_is_run(world, commands, tmp_path, monkeypatch, capsys, name, form):
    shutil.copytree(world.run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    marker = tmp_path / "marker"
    put(checkpoint, name, MAKE[form](marker))
    for command, arguments in commands.items():
        monkeypatch.setattr(sys, "argv", ["ngpt", *map(str, arguments)])
        status, err = cli.main(), capsys.readouterr().err
        assert not marker.exists(), command
        if command in READ_BY[name]:
            told = err.strip().removesuffix("\n1 of 1 checkpoints damaged")  # verify's last line
            assert status and name in told and len(told.splitlines()) == 1, (command, err)
        else:
            assert status == 0, (command, err)
    with pytest.raises(DamagedError) if name in ("__0_0.distcp", "tensors.json") else nullcontext():
        load(checkpoint, shards_of(make_model(vocabulary=world.tokenizer.size)))
    assert not marker.exists()


def test_the_pickles_would_do_harm(tmp_path):
    """What the other tests rely on."""
    (tmp_path / "file").write_bytes(zipped(tmp_path / "marker"))
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tensors.json", "[" * 100_000),
        ("tensors.json", "[1]"),
        ("tensors.json", '{"shapes": {"w": [3, 2]}, "pieces": {"/etc/passwd": [{"tensor": "w", "chunk": 0, "offset": [0, 0]}]}}'),
        ("tensors.json", '{"shapes": {}, "pieces": {"__0_0.distcp": [{"tensor": "w", "chunk": 0, "offset": [0]}]}}'),
        ("tensors.json", '{"shapes": {"weights/lm_head.weight": [1e9]}, "pieces": 5}'),
    ],
)
def test_what_is_sealed_and_senseless_is_one_line(world, tmp_path, monkeypatch, capsys, name, content):
    shutil.copytree(world.run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    put(checkpoint, name, content.encode())
    monkeypatch.setattr(sys, "argv", ["ngpt", "generate", str(tmp_path / "run"), "--prompt", "x"])
    assert cli.main() == 1
    err = capsys.readouterr().err
    assert f"is damaged: {name} cannot be read" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("chunks", [[[0, 10**18, "x"]], [[5, 4, "x"]], [[0, -4, "x"]], [[0, 4]], 3])
def test_extents_that_no_file_has(world, tmp_path, chunks):
    shutil.copytree(world.run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "checksums.json").write_text(json.dumps({"__0_0.distcp": chunks}))
    assert "checksums.json" in state["files"]
    with pytest.raises(DamagedError, match=r"checksums\.json cannot be read"):
        read_checksums(checkpoint)
