"""The front door: what it hands to the run, what each rank prints, and what it makes of failures."""

import sys
import types

import pytest

from megatron_ngpt.errors import CheckpointError, ConfigError, RankError
from megatron_ngpt.training import entry

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
            "SLURM_STEP_ID")


@pytest.fixture
def door(monkeypatch):
    """A front door whose run is `behave`; returns (main, what the run was given)."""
    given = []
    for name in LAUNCHER:
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.setattr(entry, "WAIT_SECONDS", 0.0)

    def make(behave=lambda ready: 0):
        room = types.ModuleType("megatron_ngpt.training.run")
        room.run = lambda ready: (given.append(ready), behave(ready))[1]
        monkeypatch.setitem(sys.modules, "megatron_ngpt.training.run", room)
        return entry.main, given

    return make


def raising(error):
    def behave(ready):
        raise error

    return behave


def test_one_rank_without_a_launcher(door, good_recipe, monkeypatch):
    main, given = door(lambda ready: 7)
    assert main([str(good_recipe), "--model.layers=3"]) == 7
    ready = given[0]
    assert (ready.ranks, ready.grid.size("readers"), ready.recipe.model.layers, ready.deepspeed.zero_stage) == (1, 1, 3, 1)
    assert ready.vocabulary == 200
    assert entry.os.environ["RANK"] == "0" and entry.os.environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("added", [["--local_rank=1"], ["--local_rank", "1"], ["--local-rank=1"], []])
def test_a_launchers_argument_is_no_key(door, good_recipe, monkeypatch, added):
    main, given = door()
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([*added, str(good_recipe), "--parallel.tensor=2"]) == 0
    assert (given[0].ranks, given[0].grid.size("readers")) == (4, 2)


def test_under_slurm(door, good_recipe, monkeypatch):
    main, given = door()
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "n[4-5]",
                        "SLURM_STEP_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main([str(good_recipe)]) == 0 and given[0].ranks == 2
    assert [entry.os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")] == ["1", "2", "1", "n4"]


def test_a_mistake_is_printed_by_rank_0_alone_and_the_run_is_not_reached(door, good_recipe, monkeypatch, capsys):
    main, given = door()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main([str(good_recipe), "--parallel.tensor=3"]) == 2
        assert capsys.readouterr().err.count("must divide the number of ranks, 2") == lines
    assert given == []


@pytest.mark.parametrize(("error", "status"), [(CheckpointError("step 3 is damaged"), 1), (ConfigError("a key"), 2)])
def test_a_failure_at_run_time_is_one_line(door, good_recipe, capsys, error, status):
    main, _ = door(raising(error))
    assert main([str(good_recipe)]) == status
    assert capsys.readouterr().err == f"{error}\n"


@pytest.mark.parametrize(("error", "said"), [(RankError("disk full"), "rank 1: disk full\n"), (CheckpointError("for all"), "")])
def test_another_rank_prints_only_what_it_alone_knows(door, good_recipe, monkeypatch, capsys, error, said):
    main, _ = door(raising(error))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([str(good_recipe)]) == 1
    assert capsys.readouterr().err == said


def test_a_value_without_its_equals_sign_is_told(door, good_recipe, capsys):
    main, given = door()
    assert main([str(good_recipe), "--model.layers", "3"]) == 2 and given == []
    assert capsys.readouterr().err == "--model.layers 3: write --model.layers=3, with the = sign\n"


def test_a_bug_keeps_its_traceback(door, good_recipe):
    main, _ = door(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main([str(good_recipe)])


def test_help_teaches_every_key_and_needs_no_recipe(door, capsys):
    main, given = door()
    assert main(["--local_rank=0", "--help"]) == 0
    out = capsys.readouterr().out
    assert "RECIPE.yaml" in out and "model.scales.alpha.init (number; 0.05)" in out and "checkpoint.resume" in out
    assert given == []
