"""Saves that a full disk or a kill cuts short: the checkpoint before stays, and nothing half written is left or taken for one."""

import errno
import os
import shutil
import signal

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_ngpt.checkpoint import saver, storage
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.errors import CheckpointError
from tests.checkpoint.layouts import Layout, build, fill, run_ranks
from tests.checkpoint.stores import ONE, check_readable, names, saved


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
