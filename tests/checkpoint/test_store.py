"""The checkpoints of a run directory: kills, full disks, retention, what is newest."""

import errno
import json
import os
import shutil
import signal
import threading

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ngpt.checkpoint import dcp, saver, storage
from megatron_ngpt.checkpoint.catalogue import Catalogue, find_checkpoint
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.errors import CheckpointError, ConfigError
from tests.checkpoint.layouts import Layout, build, differences, fill, run_ranks

ONE = Layout()


@pytest.fixture
def run(tmp_path):
    """A store, the shards and optimizer of its run, and its state."""
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)
    return CheckpointStore(tmp_path, keep=2, keep_every=0), shards, optimizer


def names(store):
    return sorted(path.name for path in store.catalogue.directory.iterdir())


def saved(store, step, shards, optimizer, state=None):
    """The directory of a finished save; fails with what kept it from being written."""
    store.save(step, shards, optimizer, state or {})
    result = store.wait()
    if result.error:
        raise result.error
    return result.path


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


def full_disk(monkeypatch, rank=0):
    def write_data(self, plan, planner):
        if not dist.is_initialized() or dist.get_rank() == rank:
            (self.path / "__0_0.distcp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, plan, planner)

    original = storage.Writer.write_data
    monkeypatch.setattr(storage.Writer, "write_data", write_data)


def test_full_disk_leaves_the_previous_one(run, monkeypatch):
    store, shards, optimizer = run
    previous = saved(store, 1, shards, optimizer)
    full_disk(monkeypatch)
    with pytest.raises(CheckpointError) as error:
        saved(store, 2, shards, optimizer)
    assert str(error.value) == f"checkpoint {store.catalogue.directory}/step-00000002 could not be written: No space left on device"
    assert names(store) == ["latest", "step-00000001"]
    check_readable(previous)


def test_full_disk_at_the_last_file(run, monkeypatch):
    store, shards, optimizer = run
    saved(store, 1, shards, optimizer)

    def no_space(directory, state, checksums):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saver, "seal", no_space)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saved(store, 2, shards, optimizer)
    assert names(store) == ["latest", "step-00000001"]


def check_readable(path):
    shards, optimizer = build(ONE, 0)
    dcp.load(path, shards, optimizer)
    assert differences(shards, optimizer, 3, ONE, 0) == []


def failing_rank(rank, directory):
    shards, optimizer = build(Layout(tensor=2), rank)
    fill(shards, optimizer, 3, step=1)
    store = CheckpointStore(directory, keep=1, keep_every=0)
    saved(store, 1, shards, optimizer)
    with pytest.MonkeyPatch.context() as patch:
        full_disk(patch, rank=1)
        with pytest.raises(CheckpointError) as error:
            saved(store, 2, shards, optimizer)
    dist.barrier()
    left = names(store)
    dist.barrier()
    saved(store, 3, shards, optimizer)
    return str(error.value), left, store.catalogue.newest().name


def test_full_disk_on_one_rank_is_told_on_every_rank(tmp_path):
    answers = run_ranks(2, failing_rank, tmp_path)
    assert answers[0] == answers[1]
    message, left, newest = answers[0]
    assert message.endswith("step-00000002 could not be written: No space left on device")
    assert left == ["latest", "step-00000001"]
    assert newest == "step-00000003"


def save_and_die(directory):
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)
    store = CheckpointStore(directory, keep=2, keep_every=0)
    saved(store, 1, shards, optimizer)
    storage.Writer.finish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    saved(store, 2, shards, optimizer)


def test_killed_save_leaves_the_previous_one(tmp_path, run):
    process = mp.get_context("forkserver").Process(target=save_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store, shards, optimizer = run
    assert names(store) == ["latest", "step-00000001", "step-00000002.partial"]
    assert store.catalogue.newest() == store.catalogue.directory / "step-00000001"
    check_readable(store.catalogue.newest())
    saved(store, 2, shards, optimizer)
    assert names(store) == ["latest", "step-00000001", "step-00000002"]


CALLS = ["mkdir", "rename", "replace", "fsync", "unlink", "rmdir"]


def save_and_die_before(number, step, directory):
    """Save step 1 and then `step`; SIGKILL instead of the `number`-th call that changes the disk, of those of the second save."""
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)
    store = CheckpointStore(directory, keep=1, keep_every=0)
    saved(store, 1, shards, optimizer)
    left = [number]

    def counted(original):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    saved(store, step, shards, optimizer)
    os._exit(0)


@pytest.mark.parametrize("step", [2, 1], ids=["the next step", "the same step again"])
def test_killed_before_any_change_of_the_disk(tmp_path, run, step):
    """Wherever a save is cut off, the one before it or the new one is whole, and the next save leaves nothing else behind."""
    number, newest = 0, []
    while True:
        number += 1
        directory = tmp_path / str(number)
        process = mp.get_context("forkserver").Process(target=save_and_die_before, args=(number, step, directory))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        store = CheckpointStore(directory, keep=1, keep_every=0)
        store.catalogue.rescue()
        found, _ = store.catalogue.find("auto")
        check_readable(found)
        newest.append(found.name)
        store.tidy()
        assert names(store) == ["latest", found.name]
        _, shards, optimizer = run
        saved(store, 3, shards, optimizer)
        assert names(store) == ["latest", "step-00000003"]
    assert number > 15
    assert newest == sorted(newest) and set(newest) == {"step-00000001", f"step-{step:08}"}


def test_leftovers_of_killed_work_go_with_the_next_save(run):
    store, shards, optimizer = run
    first = saved(store, 1, shards, optimizer)
    shutil.copytree(first, store.catalogue.directory / "step-00000007.partial")
    shutil.copytree(first, store.catalogue.directory / "step-00000008.obsolete")
    (store.catalogue.directory / "latest.partial").write_text("x")
    assert store.catalogue.newest() == first
    saved(store, 2, shards, optimizer)
    assert names(store) == ["latest", "step-00000001", "step-00000002"]


def test_step_zero_has_no_moments_and_leaves_the_optimizer_fresh(run, tmp_path):
    _, shards, _ = run
    fresh = torch.optim.AdamW([s.buffer for s in shards.values()])
    save(tmp_path / "zero", shards, fresh, {"step": 0})
    assert dcp.load(tmp_path / "zero", shards, fresh)["step"] == 0
    assert not fresh.state
    save(tmp_path / "without", shards, None, {"step": 4})
    with pytest.raises(CheckpointError, match=r"it holds no exp_avg/lm_head\.weight, which has shape \[33, 8\]"):
        dcp.load(tmp_path / "without", shards, fresh)
