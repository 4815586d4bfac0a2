"""What a run directory keeps when something in it is odd: links, stubborn entries, a full disk, values that are not finite."""

import errno
import logging
import os
import shutil

import pytest

from megatron_ngpt.checkpoint import catalogue, dcp, saver, storage, store
from megatron_ngpt.checkpoint.report import verify_checkpoints
from megatron_ngpt.checkpoint.saver import save
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.errors import CheckpointError, DamagedError, NotFiniteError
from tests.checkpoint.layouts import Layout, build, fill

ONE = Layout()


@pytest.fixture
def run(tmp_path):
    """A store that keeps two, the shards and the optimizer of its run."""
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)
    return CheckpointStore(tmp_path / "run", keep=2, keep_every=0), shards, optimizer


def saved(run, step, wait_for_room=None):
    """The directory of a finished save; raises what kept it from being written."""
    kept, shards, optimizer = run
    kept.save(step, shards, optimizer, {}, wait_for_room=wait_for_room)
    result = kept.wait()
    if result.error:
        raise result.error
    return result.path


def names(run):
    return sorted(path.name for path in run[0].catalogue.directory.iterdir())


def archive(run, step, tmp_path, name=None):
    """Move a checkpoint to an archive, and leave a symbolic link in its place."""
    path, kept = run[0].catalogue.directory / f"step-{step:08d}", tmp_path / f"archive-{step}"
    path.rename(kept)
    path.symlink_to(name or kept)
    return kept


def test_an_archived_step_goes_and_the_archive_stays(run, tmp_path, caplog):
    saved(run, 1)
    kept = archive(run, 1, tmp_path)
    for step in (2, 3, 4):
        saved(run, step)
    assert names(run) == ["latest", "step-00000003", "step-00000004"]
    assert (kept / "state.json").is_file() and not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("dangling", [False, True])
def test_the_same_step_again_replaces_a_link(run, tmp_path, dangling):
    saved(run, 1)
    kept = archive(run, 1, tmp_path)
    if dangling:
        shutil.rmtree(kept)
    path = saved(run, 1)
    assert names(run) == ["latest", "step-00000001"] and not path.is_symlink()
    assert kept.exists() is not dangling


def test_a_link_that_is_put_aside_or_left_over(run, tmp_path):
    for step in (1, 2):
        saved(run, step)
    kept = archive(run, 1, tmp_path)
    (kept / "tensors.json").unlink()
    (run[0].catalogue.directory / "step-00000009.partial").symlink_to(kept)
    for step in (3, 4):
        saved(run, step)
    assert names(run) == ["latest", "step-00000003", "step-00000004"]
    assert (kept / "state.json").is_file()


@pytest.mark.parametrize("stubborn", ["step-00000001", "latest", "step-00000007.partial", "step-00000008.damaged"])
def test_one_stubborn_entry_keeps_no_other(run, monkeypatch, caplog, stubborn):
    """Told in a line, once."""
    (run[0].catalogue.directory).mkdir(parents=True)
    for leftover in ("step-00000006.obsolete", "step-00000007.partial", "step-00000008.damaged"):
        (run[0].catalogue.directory / leftover).mkdir()

    def refusing(original):
        def action(path, *rest):
            if path.name == stubborn:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return original(path, *rest)

        return action

    for module, name in ((store, "retire"), (store, "remove"), (store, "write_text")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3, 4):
            saved(run, step)
    expected = {"latest", "step-00000003", "step-00000004"} | {stubborn}
    assert set(names(run)) == (expected - {"latest"} if stubborn == "latest" else expected)
    told = [record for record in caplog.records if stubborn in record.getMessage()]
    assert len(told) == 1 and "Permission denied" in told[0].getMessage() and told[0].exc_info is None


def test_an_entry_that_cannot_be_read_keeps_no_other(run, monkeypatch):
    original = catalogue.read_state

    def read_state(path):
        if path.name == "step-00000001":
            raise CheckpointError(f"{path}/state.json cannot be read: Input/output error")
        return original(path)

    monkeypatch.setattr(catalogue, "read_state", read_state)
    for step in (1, 2, 3, 4):
        saved(run, step)
    assert names(run) == ["latest", "step-00000001", "step-00000003", "step-00000004"]


@pytest.fixture
def small_disk(run, monkeypatch):
    """A disk with room for two checkpoints; `full` says that others took the rest."""
    original, disk = storage.Writer.write_data, {"full": False, "tries": 0}

    def write_data(self, plan, planner):
        disk["tries"] += 1
        complete = [p for p in run[0].catalogue.directory.iterdir() if (p / "state.json").exists()]
        if disk["full"] or len(complete) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, plan, planner)

    monkeypatch.setattr(storage.Writer, "write_data", write_data)
    monkeypatch.setattr(saver, "RETRY", 0.01)
    return disk


def test_room_that_keep_would_free_is_freed_before_a_save_is_given_up(run, small_disk):
    for step in (1, 2, 3, 4):
        saved(run, step)
    assert names(run) == ["latest", "step-00000003", "step-00000004"]


def test_the_last_good_one_is_never_given_for_room(run, small_disk):
    run[0].keep = 1
    saved(run, 1)
    small_disk["full"] = True
    with pytest.raises(CheckpointError, match="No space left on device"):
        saved(run, 2)
    assert names(run) == ["latest", "step-00000001"]


def test_the_last_save_waits_for_room(run, small_disk, monkeypatch):
    small_disk["full"], told = True, []

    def say(line):
        told.append(line)
        tries = small_disk["tries"]
        monkeypatch.setattr(saver.time, "sleep", lambda _: small_disk.update(full=small_disk["tries"] < tries + 3))

    assert saved(run, 1, wait_for_room=say).is_dir()
    assert told == ["warning: the disk is full: step-00000001 waits for room, 10 minutes at most"]


def test_patience_ends(run, small_disk, monkeypatch):
    small_disk["full"] = True
    monkeypatch.setattr(saver, "PATIENCE", 0.05)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saved(run, 1, wait_for_room=lambda _: None)
    assert names(run) == []


def spoil(shards, optimizer, kind, value):
    shard = shards["lm_head.weight"]
    (shard.master if kind == "weights" else shard.moment(optimizer, kind)).view(-1)[3] = value


@pytest.mark.parametrize("kind", ["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_no_checkpoint(run, kind, value):
    for step in (1, 2):
        saved(run, step)
    spoil(*run[1:], kind, value)
    with pytest.raises(NotFiniteError, match=rf"step-00000003 was not written: {kind}/lm_head.weight hold.*step-00000003.notfinite"):
        saved(run, 3)
    assert names(run) == ["latest", "step-00000001", "step-00000002", "step-00000003.notfinite"]
    assert run[0].catalogue.find("auto")[0].name == "step-00000002"
    with pytest.raises(DamagedError, match=r"lm_head\.weight that are not finite"):
        verify_checkpoints(run[0].catalogue.directory / "step-00000003.notfinite")
    run[0].tidy()
    assert "step-00000003.notfinite" in names(run)
    fill(*run[1:], 3, step=1)
    for step in (3, 4, 5):
        saved(run, step)
    assert names(run) == ["latest", "step-00000004", "step-00000005"]


def test_one_that_is_there_is_named_by_who_reads_it(run, monkeypatch):
    """Written by who did not look."""
    _, shards, optimizer = run
    path = saved(run, 1)
    monkeypatch.setattr(storage, "is_finite", lambda _: True)
    spoil(shards, optimizer, "weights", float("nan"))
    bad = saved(run, 2)
    monkeypatch.undo()
    with pytest.raises(NotFiniteError, match=f"{bad} holds values of weights/lm_head.weight that are not finite"):
        dcp.load(bad, shards, optimizer)
    with pytest.raises(NotFiniteError, match=r"weights/lm_head\.weight"):
        dcp.StoredTensors(bad).read("lm_head.weight")
    with pytest.raises(DamagedError, match="1 of 2 checkpoints damaged") as error:
        verify_checkpoints(run[0].catalogue.directory.parent)
    assert f"{path}: good" in str(error.value) and "weights/lm_head.weight that are not finite" in str(error.value)
    assert catalogue.from_checkpoint(run[0].catalogue.directory.parent, "MODEL", lambda p: dcp.load(p, shards)["step"]) == 1


def test_nothing_is_written_or_removed_where_the_check_refuses(tmp_path):
    shards, optimizer = build(ONE, 0)
    fill(shards, optimizer, 3, step=1)

    class Refused(CheckpointError):
        pass

    allowed = [True]

    def check():
        if not allowed[0]:
            raise Refused("not ours any more")

    kept = CheckpointStore(tmp_path, keep=1, keep_every=0, check=check)
    saved((kept, shards, optimizer), 1)
    save(kept.catalogue.directory / "step-00000002", shards, optimizer, {"step": 2, "serial": 9})
    (kept.catalogue.directory / "step-00000003.partial").mkdir()
    before = sorted(kept.catalogue.directory.rglob("*"))
    allowed[0] = False
    kept.tidy()
    with pytest.raises(CheckpointError, match="not ours any more"):
        saved((kept, shards, optimizer), 3)
    with pytest.raises(Refused):
        kept.set_aside(kept.catalogue.newest())
    assert sorted(kept.catalogue.directory.rglob("*")) == before
