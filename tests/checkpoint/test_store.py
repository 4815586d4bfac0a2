"""The checkpoints of a run directory: kills, full disks, retention, what is newest."""

import json
import os
import threading

import pytest
import torch

from megatron_ngpt.checkpoint import dcp, storage
from megatron_ngpt.checkpoint.catalogue import Catalogue, find_checkpoint
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.errors import CheckpointError, ConfigError
from tests.checkpoint.stores import check_readable, names, saved


def test_name_state_and_latest(run):
    store, shards, optimizer = run
    path = saved(store, 10, shards, optimizer, {"tokens": 320, "recipe": {"model": {"arch": "ngpt"}}})
    assert path == store.catalogue.directory / "step-00000010"
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["tokens"], state["recipe"]["model"]["arch"]) == (10, 320, "ngpt")
    assert (store.catalogue.directory / "latest").read_text().strip() == "step-00000010"
    assert store.catalogue.newest() == path


def test_retention(run):
    store, shards, optimizer = run
    store.keep_every = 4
    for step in range(1, 8):
        saved(store, step, shards, optimizer)
    assert names(store) == ["latest", "step-00000004", "step-00000006", "step-00000007"]


def test_a_run_that_went_back_keeps_what_it_saves(run):
    store, shards, optimizer = run
    for step in (100, 200, 300):
        saved(store, step, shards, optimizer)
    assert saved(store, 210, shards, optimizer) == store.catalogue.newest()
    assert names(store) == ["latest", "step-00000210", "step-00000300"]


def test_same_step_again_replaces(run):
    store, shards, optimizer = run
    saved(store, 5, shards, optimizer, {"tokens": 1})
    saved(store, 5, shards, optimizer, {"tokens": 2})
    assert json.loads((store.catalogue.newest() / "state.json").read_text())["tokens"] == 2
    assert names(store) == ["latest", "step-00000005"]


@pytest.mark.parametrize("latest", [None, "step-00000001\n", "step-00000099\n"])
def test_latest_is_not_relied_on(run, latest):
    store, shards, optimizer = run
    saved(store, 1, shards, optimizer)
    newest = saved(store, 2, shards, optimizer)
    (store.catalogue.directory / "latest").unlink()
    if latest:
        (store.catalogue.directory / "latest").write_text(latest)
    assert store.catalogue.newest() == newest


@pytest.mark.parametrize("lost", ["state.json", "tensors.json", "__0_0.distcp", "half of __0_0.distcp"])
def test_newest_skips_the_incomplete(run, lost):
    store, shards, optimizer = run
    good = saved(store, 1, shards, optimizer)
    bad = saved(store, 2, shards, optimizer)
    if lost.startswith("half of "):
        file = bad / lost.removeprefix("half of ")
        os.truncate(file, file.stat().st_size // 2)
    else:
        (bad / lost).unlink()
    assert store.catalogue.newest() == good
    assert store.catalogue.find("auto")[0] == good


def test_auto_never_starts_over_from_damage(run):
    store, shards, optimizer = run
    assert store.catalogue.find("auto")[0] is None
    (saved(store, 1, shards, optimizer) / "tensors.json").unlink()
    with pytest.raises(CheckpointError, match=r"tensors\.json is missing; no good checkpoint in"):
        store.catalogue.find("auto")


def test_find_by_path(run, tmp_path):
    store, shards, optimizer = run
    path = saved(store, 1, shards, optimizer)
    assert store.catalogue.find("never")[0] is None
    assert store.catalogue.find(str(path))[0] == path
    assert store.catalogue.find(str(tmp_path))[0] == path
    with pytest.raises(ConfigError, match=r"checkpoint\.resume: .*nowhere"):
        Catalogue(tmp_path / "no checkpoints yet").find(str(tmp_path / "nowhere"))
    (path / "tensors.json").unlink()
    with pytest.raises(CheckpointError, match="is not complete"):
        find_checkpoint(path, "MODEL")


def test_what_is_saved_is_what_was_there_when_it_began(run, monkeypatch):
    """Training goes on while it is written, and so does the next save, in the same memory."""
    store, shards, optimizer = run
    may_write, original = threading.Event(), storage.Writer.write_data

    def write_data(self, plan, planner):
        may_write.wait(60)
        return original(self, plan, planner)

    monkeypatch.setattr(storage.Writer, "write_data", write_data)
    store.save(1, shards, optimizer, {})
    assert store.finished() is None
    for shard in shards.values():
        shard.master.add_(1)
        shard.moment(optimizer, "exp_avg").add_(1)
    may_write.set()
    first = store.wait()
    assert first.error is None and store.wait() is None
    check_readable(first.path)
    second = saved(store, 2, shards, optimizer)
    with pytest.raises(AssertionError):
        check_readable(second)


def test_step_zero_has_no_moments_and_leaves_the_optimizer_fresh(run, tmp_path):
    _, shards, _ = run
    fresh = torch.optim.AdamW([s.buffer for s in shards.values()])
    save(tmp_path / "zero", shards, fresh, {"step": 0})
    assert dcp.load(tmp_path / "zero", shards, fresh)["step"] == 0
    assert not fresh.state
    save(tmp_path / "without", shards, None, {"step": 4})
    with pytest.raises(CheckpointError, match=r"it holds no exp_avg/lm_head\.weight, which has shape \[33, 8\]"):
        dcp.load(tmp_path / "without", shards, fresh)
