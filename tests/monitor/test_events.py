"""`events.jsonl`: lines that outlive kills and full disks."""

import errno

import pytest

from megatron_ngpt.monitor.events import EventLog, events_file, read_events


def happened(run):
    return [(event["event"], event["step"]) for event in read_events(run)]


def test_events_of_all_starts_stay(tmp_path):
    for start in (0, 3):
        log = EventLog(tmp_path)
        log.append("start", start, resumed_from=None, notes=["a → b"])
        log.append("end", start + 3, outcome="stopped")
        log.close()
    assert happened(tmp_path) == [("start", 0), ("end", 3), ("start", 3), ("end", 6)]
    assert read_events(tmp_path)[0]["notes"] == ["a → b"] and read_events(tmp_path)[0]["time"] > 1e9


@pytest.mark.parametrize("torn", [b'{"time": 1, "event": "st', b"x" * 100_000])
def test_what_a_kill_left_of_a_line_spoils_no_other(tmp_path, torn):
    EventLog(tmp_path).append("start", 0)
    before = events_file(tmp_path).read_bytes()
    if len(torn) < 1000:
        events_file(tmp_path).write_bytes(before + torn)
    else:
        events_file(tmp_path).write_bytes(torn)
    assert happened(tmp_path) == ([("start", 0)] if len(torn) < 1000 else [])
    EventLog(tmp_path).append("end", 2)
    assert happened(tmp_path)[-1] == ("end", 2)
    if len(torn) < 1000:
        assert happened(tmp_path) == [("start", 0), ("end", 2)] and events_file(tmp_path).read_bytes().startswith(before)


def test_on_a_full_disk_events_wait(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    file = log._lines._file

    class Full:
        def __getattr__(self, name):
            return getattr(file, name)

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    log._lines._file = Full()
    log.append("checkpoint_failed", 1, error="full")
    assert happened(tmp_path) == []
    log._lines._file = file
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    log.append("end", 2, outcome="finished")
    assert happened(tmp_path) == [("checkpoint_failed", 1), ("end", 2)]


def test_an_event_that_nobody_knows_is_a_mistake_of_ours(tmp_path):
    with pytest.raises(ValueError, match="ended: no event of a run; choose from start, checkpoint"):
        EventLog(tmp_path).append("ended", 1)
    assert read_events(tmp_path / "elsewhere") == []
