"""Damage is found by checksum and named, whatever the file and wherever the bit."""

import json
import shutil
import sys

import pytest

from megatron_ngpt import cli
from megatron_ngpt.checkpoint.catalogue import Catalogue, from_checkpoint
from megatron_ngpt.checkpoint.dcp import StoredTensors, load
from megatron_ngpt.checkpoint.seal import verify
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.errors import CheckpointError, DamagedError
from tests.checkpoint.damage import flip
from tests.checkpoint.layouts import Layout, build, fill, run_ranks

FILES = ["state.json", "checksums.json", "tensors.json", "__0_0.distcp", "__1_0.distcp"]
TWO = Layout(data=2, partition=True)
STATE = {"tokens": 5, "saved": "then", "recipe": {"parallel": {"tensor": 1, "pipeline": 1}, "deepspeed": "zero2.json"}}


def save_twice(rank, output):
    shards, optimizer = build(TWO, rank)
    fill(shards, optimizer, 3, step=1)
    store = CheckpointStore(output, keep=2, keep_every=0)
    for step in (1, 2):
        store.save(step, shards, optimizer, STATE)
        assert store.wait().error is None


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run directory with two checkpoints that two ranks wrote."""
    output = tmp_path_factory.mktemp("run")
    run_ranks(2, save_twice, output)
    return output


@pytest.fixture
def run(original, tmp_path):
    """A copy that may be damaged, and its newest checkpoint."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000002"


def damage(file, how):
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "longer":
        file.write_bytes(file.read_bytes() + b" ")
    else:
        flip(file, {"first bit": 0, "middle": file.stat().st_size // 2, "last bit": -1}[how])


WAYS = ["missing", "cut", "longer", "first bit", "middle", "last bit"]


@pytest.mark.parametrize(("name", "how"), [(n, h) for n in FILES for h in WAYS if (n, h) != ("state.json", "longer")])
def test_every_damage_is_found_and_named(run, name, how):
    output, newest = run
    assert verify(newest) == []
    damage(newest / name, how)
    problems = verify(newest)
    assert len(problems) == 1 and name in problems[0] and str(newest) in problems[0]
    shards, optimizer = build(Layout(), 0)
    with pytest.raises(DamagedError, match=name):
        load(newest, shards, optimizer)
    taken = []
    assert from_checkpoint(output, "MODEL", lambda path: taken.append(path) or load(path, shards, optimizer)["step"]) == 1
    assert taken[-1] == newest.with_name("step-00000001")


def test_every_chunk_is_covered(run):
    """No byte of a tensor file lies outside the chunks that have checksums."""
    _, newest = run
    for name, chunks in json.loads((newest / "checksums.json").read_text()).items():
        at = 0
        for offset, length, _ in chunks:
            assert offset == at
            at += length
        assert at == (newest / name).stat().st_size


def test_damage_elsewhere_does_not_matter_to_who_reads_a_tensor(run):
    _, newest = run
    flip(newest / "__0_0.distcp", -1)
    stored = StoredTensors(newest)
    good = 0
    for name in stored.names:
        try:
            stored.read(name)
            good += 1
        except DamagedError:
            pass
    assert good > 0


def load_damaged(rank, path):
    shards, optimizer = build(TWO, rank)
    with pytest.raises(DamagedError) as error:
        load(path, shards, optimizer)
    return str(error.value)


def test_what_one_rank_finds_every_rank_raises(run):
    _, newest = run
    flip(newest / "__1_0.distcp", 1000)
    first, second = run_ranks(2, load_damaged, newest)
    assert first == second and "__1_0.distcp" in first


def test_odd_choices_are_told(run):
    output, newest = run
    catalogue = Catalogue(output)
    assert catalogue.find("auto") == (newest, [])
    (newest.parent / "latest").write_text("step-00000099\n")
    found, notes = catalogue.find("auto")
    assert found == newest and len(notes) == 1 and "step-00000099" in notes[0]
    (newest / "tensors.json").unlink()
    found, notes = catalogue.find("auto")
    assert found.name == "step-00000001" and any("tensors.json is missing" in note for note in notes)


def test_another_format_is_no_damage(run):
    output, newest = run
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2; this version reads format 6"):
        Catalogue(output).find("auto")
    CheckpointStore(output, 1, 0).tidy()
    assert newest.is_dir()


def test_damaged_ones_are_put_aside_and_go_when_enough_good_ones_are_there(run):
    output, newest = run
    (newest / "tensors.json").unlink()
    CheckpointStore(output, keep=2, keep_every=0).tidy()
    names = sorted(path.name for path in newest.parent.iterdir())
    assert names == ["latest", "step-00000001", "step-00000002.damaged"]
    assert Catalogue(output).latest() == "step-00000001"
    CheckpointStore(output, keep=1, keep_every=0).tidy()
    assert sorted(path.name for path in newest.parent.iterdir()) == ["latest", "step-00000001"]


def test_auto_never_starts_over_what_was_put_aside(run):
    output, newest = run
    shutil.rmtree(newest.with_name("step-00000001"))
    newest.rename(newest.with_name("step-00000002.damaged"))
    with pytest.raises(CheckpointError, match="no good checkpoint in"):
        Catalogue(output).find("auto")


def ngpt(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ngpt", "checkpoint", *map(str, arguments)])
    status = cli.main()
    return status, *capsys.readouterr()


def test_verify_and_list_commands(run, tmp_path, monkeypatch, capsys):
    output, newest = run
    status, out, _ = ngpt(monkeypatch, capsys, "verify", output)
    assert status == 0 and [line.split(": ")[1][:4] for line in out.splitlines()] == ["good", "good"]
    flip(newest / "__0_0.distcp", 5000)
    status, _, err = ngpt(monkeypatch, capsys, "verify", output)
    assert status == 1
    assert "step-00000001: good" in err and "__0_0.distcp has not the checksum" in err and "1 of 2 checkpoints damaged" in err
    assert "Traceback" not in err
    assert ngpt(monkeypatch, capsys, "verify", newest.with_name("step-00000001"))[0] == 0
    (newest / "__1_0.distcp").unlink()
    (newest.parent / "step-00000003.partial").mkdir()
    status, out, _ = ngpt(monkeypatch, capsys, "list", output)
    told = out.splitlines()
    assert status == 0 and len(told) == 4
    assert "complete" in told[1] and "tensor 1 × pipeline 1, zero2" in told[1]
    assert "__1_0.distcp is missing" in told[2] and "unfinished" in told[3]
    status, _, err = ngpt(monkeypatch, capsys, "list", tmp_path / "nowhere")
    assert status == 2 and err.startswith("DIR: ") and len(err.splitlines()) == 1
