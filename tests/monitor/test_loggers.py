"""Loggers: found by name, refused before a start, fed, and harmless when they fail; the CSV file."""

import csv
import io
import os
import resource

import pytest

from megatron_ngpt.monitor import loggers
from megatron_ngpt.monitor.csv_file import CsvLogger
from megatron_ngpt.monitor.logger import RunInfo
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.monitor.table import flat
from tests.monitor.recipes import Remembering, recipe

OWN = "tests.monitor.recipes:Remembering"


@pytest.fixture
def remembering(monkeypatch):
    monkeypatch.setattr(Remembering, "told", [])
    monkeypatch.setattr(Remembering, "broken", ())
    return Remembering


def rows(folder) -> list[dict]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("names", "said"), [
    (["tensorbord"], "monitor.loggers = tensorbord: no such logger; choose from tensorboard, csv, wandb, or a class of your own as "),
    (["csv", "csv"], "monitor.loggers = csv: is there twice"),
    (["no.such.package:Class"], "monitor.loggers = no.such.package:Class: cannot be imported (ModuleNotFoundError: No module named 'no'"),
    (["tests.monitor.recipes:Missing"], "cannot be imported (AttributeError: "),
    (["tests.monitor.recipes:NoLogger"], "is no subclass of megatron_ngpt.monitor.logger:Logger"),
    ([":Class"], "no such logger"),
])
def test_what_is_no_logger_is_refused_in_a_line(names, said):
    [line] = loggers.problems(names)
    assert said in line and "\n" not in line


def test_a_package_that_is_missing_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    [line] = loggers.problems(["tensorboard", "csv", "wandb", OWN])
    assert line.startswith("monitor.loggers = wandb: the package wandb is not installed; pip install -e '.[wandb]'")


def test_a_logger_of_ones_own_is_told_everything(tmp_path, remembering):
    monitor = Monitor(recipe(tmp_path, [OWN]), 3, 0, io.StringIO())
    monitor.scalars(4, {"valid_loss": 2.0, "valid": {"web": 2.0}})
    monitor.text(4, "sample", "Once")
    monitor.checkpoint(tmp_path, 4, 1.0, 0.5)
    monitor.close()
    assert remembering.told == [
        ("init", tmp_path, 3),
        ("scalars", 4, {"valid_loss": 2.0, "valid": {"web": 2.0}}),
        ("text", 4, "sample", "Once"),
        ("scalars", 4, {"checkpoint_seconds": 1.0, "checkpoint_stall_seconds": 0.5}),
        ("close",),
    ]


@pytest.mark.parametrize("broken", ["init", "scalars", "text", "close"])
def test_a_logger_that_fails_is_told_once_and_harms_nobody(tmp_path, remembering, broken):
    remembering.broken = (broken,)
    console = io.StringIO()
    monitor = Monitor(recipe(tmp_path, [OWN, "csv"]), 0, 0, console)
    for step in (1, 2):
        monitor.scalars(step, {"valid_loss": float(step)})
        monitor.text(step, "sample", "Once")
    monitor.close()
    said = f"warning: monitor.loggers = {OWN} fails: {broken} is broken; training goes on, metrics.jsonl has every value"
    assert [line for line in console.getvalue().splitlines() if "warning" in line] == [said]
    assert [row["valid_loss"] for row in rows(tmp_path)] == ["1.0", "2.0"]
    assert [what[0] for what in remembering.told].count("scalars") == {"init": 0, "scalars": 0}.get(broken, 2)


def test_numbers_alone():
    values = {"loss": 2.0, "valid": {"web": 1.5, "code": None}, "alpha": [0.1, 0.2], "max_norm_error": None, "word": "no"}
    assert flat(values) == {"loss": 2.0, "valid/web": 1.5, "alpha/0": 0.1, "alpha/1": 0.2}


def test_csv_has_a_column_a_number_and_a_row_a_line(tmp_path):
    log = CsvLogger(RunInfo(tmp_path, recipe(tmp_path), 0))
    log.scalars(1, {"loss": 2.5, "lr": 0.1})
    assert rows(tmp_path) == [{"step": "1", "loss": "2.5", "lr": "0.1"}]  # before it is closed
    log.scalars(1, {"valid_loss": 3.0})
    log.scalars(2, {"lr": 0.2, "loss": 2.0})
    assert rows(tmp_path) == [
        {"step": "1", "loss": "2.5", "lr": "0.1", "valid_loss": ""},
        {"step": "1", "loss": "", "lr": "", "valid_loss": "3.0"},
        {"step": "2", "loss": "2.0", "lr": "0.2", "valid_loss": ""},
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("torn", ["", "4,1", "4,1.0,0", "x,1.0\n", "\n"])
def test_csv_is_cut_after_the_step_that_the_run_goes_on_from(tmp_path, torn):
    log = CsvLogger(RunInfo(tmp_path, recipe(tmp_path), 0))
    for step in range(1, 5):
        log.scalars(step, {"loss": float(step)})
    with log.path.open("a") as file:
        file.write(torn)
    again = CsvLogger(RunInfo(tmp_path, recipe(tmp_path), 2))
    again.scalars(3, {"loss": 30.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("1", "1.0"), ("2", "2.0"), ("3", "30.0")]


def test_csv_on_a_full_disk_tears_no_row_and_loses_none(tmp_path):
    log = CsvLogger(RunInfo(tmp_path, recipe(tmp_path), 0))
    log.scalars(1, {"loss": 1.0})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(log.path) + 2, limit[1]))
    try:
        for step, values in ((2, {"loss": 2.0}), (3, {"other": 3.0})):  # a row, and a new column
            with pytest.raises(OSError):
                log.scalars(step, values)
            assert rows(tmp_path) == [{"step": "1", "loss": "1.0"}]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    log.scalars(4, {"loss": 4.0})
    assert [row["step"] for row in rows(tmp_path)] == ["1", "2", "3", "4"] and rows(tmp_path)[2]["other"] == "3.0"
