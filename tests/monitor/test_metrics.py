"""metrics.jsonl: valid lines, readable at once, and a resumed run's file that reads like an undisturbed one's."""

import json
import math
import resource

import pytest

from megatron_ngpt.monitor.metrics import MetricsLog, read_metrics


def lines(path) -> list[dict]:
    """The file's objects; a constant that JSON does not know is an error."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_when_append_returns(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append({"step": 1, "loss": 2.5})
    assert lines(log.path) == [{"step": 1, "loss": 2.5}]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "loss": math.nan, "grad_norm": math.inf, "valid": {"web": -math.inf, "code": 1.5}})
    assert lines(log.path) == [{"step": 1, "loss": None, "grad_norm": None, "valid": {"web": None, "code": 1.5}}]


def test_cut_keeps_the_checkpoints_step_and_goes_on_behind_it(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.append({"step": step})
        log.append({"step": step, "valid_loss": 1.0})
    log.cut_after(3)
    log.append({"step": 4, "again": True})
    assert [line["step"] for line in lines(log.path)] == [1, 1, 2, 2, 3, 3, 4]
    assert lines(log.path)[-1] == {"step": 4, "again": True}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"ste', "{", "\n", '{"step": 2', "12", "\x00\x00"])
def test_cut_removes_a_line_that_a_kill_tore(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)
    log = MetricsLog(path)
    log.cut_after(5)
    log.append({"step": 2})
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_cut_at_the_start_empties_the_file(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    log.cut_after(0)
    assert log.path.read_text() == ""


def test_a_full_disk_tears_no_line_and_loses_none(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))  # no file of this process may be longer, as on a full disk
    try:
        log.append({"step": 2})
        assert "cannot be written: " in log.problem
        assert lines(log.path) == [{"step": 1}]
        log.append({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    log.append({"step": 4})
    assert log.problem is None
    assert [line["step"] for line in lines(log.path)] == [1, 2, 3, 4]


def test_reading_leaves_out_what_a_writer_has_not_finished(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 1, "valid_loss": null}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 1, "valid_loss": None}]
    assert read_metrics(tmp_path, "loss") == [{"step": 1, "loss": 2.5}] and read_metrics(tmp_path, "valid_loss") == []
