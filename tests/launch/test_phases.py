"""A run goes on at another context: a phase begins, what it may change is told, and its place in the data is kept."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools import __main__ as tools
from megatron_ngpt import cli
from megatron_ngpt.checkpoint.catalogue import Catalogue
from megatron_ngpt.checkpoint.seal import seal
from megatron_ngpt.training.phase import Phase, phase_at, phases_of
from megatron_ngpt.training.preflight import preflight
from megatron_ngpt.training.record import continued, state_of
from tests.records import NOTHING_WRONG

LONGER = ["--model.context=32", "--training.global_batch=4", "--training.steps=12"]
WHOLE = "[{{prefix: {corpus}/text}}]"


def going_on(recipe, options) -> tuple[list[str], list[Phase]]:
    """What a run with these options tells, and its phases."""
    ready = preflight(str(recipe), options, 1)
    _, notes, phases = continued(Catalogue(Path(ready.recipe.training.output)), ready.recipe, ready.data, ready.batches.fingerprint)
    return notes, phases


def save(recipe, options, step: int, serial: int) -> None:
    """The checkpoint of `step` that such a run writes."""
    ready = preflight(str(recipe), options, 1)
    output, (_, phases) = Path(ready.recipe.training.output), going_on(recipe, options)
    checkpoint = output / "checkpoints" / f"step-{step:08}"
    checkpoint.mkdir()
    state = state_of(ready.recipe, step, ready.vocabulary, ready.batches.fingerprint, "code", phases, NOTHING_WRONG)
    seal(checkpoint, {"step": step, "serial": serial, **state}, [])
    (output / "checkpoints" / "latest").write_text(checkpoint.name)


def test_what_a_phase_changes_is_told(good_recipe, run):
    options = [*run, *LONGER, "--model.rope_base=40000", "--model.rope_scaling={kind: yarn, factor: 2, original_context: 16}"]
    notes, phases = going_on(good_recipe, [*options, "--data.document_boundaries=mask", "--data.train.0.weight=2"])
    assert notes[1].startswith("model.context: 16 → 32: a phase begins after step 5, its samples are ordered anew over all of data.train")
    assert notes[1].endswith("text of the 640 tokens before may come again")
    assert {
        "model.rope_base: 10000.0 → 40000.0", "model.rope_scaling.kind: none → yarn", "model.rope_scaling.factor: 1.0 → 2.0",
        "model.rope_scaling.original_context: None → 16", "data.document_boundaries: ignore → mask",
        "training.global_batch: 8 → 4", "training.steps: 5 → 12",
    } <= set(notes)
    assert any(note.startswith("data.train: [{") and "'weight': 2.0" in note for note in notes)
    assert phases == [Phase(0, 16, 8), Phase(5, 32, 4, 40, 640)]


def test_checking_tells_it_too(good_recipe, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ngpt", "check", str(good_recipe), *run, *LONGER])
    assert cli.main() == 0
    told = capsys.readouterr()
    assert told.out.count("\n") == 1 and told.err.count("model.context: 16 → 32: a phase begins after step 5") == 1


def test_positions_alone_begin_no_phase(good_recipe, run):
    notes, phases = going_on(good_recipe, [*run, "--model.rope_base=40000"])
    assert "model.rope_base: 10000.0 → 40000.0" in notes and not any("a phase begins" in note for note in notes)
    assert phases == [Phase(0, 16, 8)]


def test_other_files_under_the_same_names_are_refused_in_a_phase_too(good_recipe, corpus, run):
    ready = preflight(str(good_recipe), [*run, *LONGER], 1)
    with pytest.raises(Exception, match="the files under these names are not the ones the checkpoint was trained on"):
        continued(Catalogue(Path(ready.recipe.training.output)), ready.recipe, ready.data, "another")
    notes, _ = going_on(good_recipe, [*run, *LONGER, f"--data.train={WHOLE.format(corpus=corpus)}", "--data.valid=[]"])
    assert any(note.startswith("data.train: ") for note in notes)


def test_phases_add_up_and_each_step_has_one(good_recipe, run):
    save(good_recipe, [*run, *LONGER], 8, 2)
    notes, phases = going_on(good_recipe, [*run, *LONGER])
    assert phases == [Phase(0, 16, 8), Phase(5, 32, 4, 40, 640)] and not any("a phase begins" in note for note in notes)
    assert (phases[1].samples_at(8), phases[1].tokens_at(8)) == (40 + 3 * 4, 640 + 3 * 4 * 32)
    shorter = [*run, "--model.context=8", "--training.global_batch=6", "--training.steps=20"]
    save(good_recipe, shorter, 15, 3)
    _, phases = going_on(good_recipe, shorter)
    assert phases[2] == Phase(8, 8, 6, 52, 1024) and phases[2].tokens_at(15) == 1024 + 7 * 6 * 8
    assert [phase_at(phases, step).after for step in (1, 5, 6, 8, 9, 99)] == [0, 0, 5, 5, 8, 8]
    ready = preflight(str(good_recipe), shorter, 1)
    assert phases_of(ready.recipe) == [replace(phases[2], after=0, samples=0, tokens=0)]


def shown(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """Status and complaints of `show-batch`."""
    monkeypatch.setattr(sys, "argv", ["data_tools", "show-batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        tools.main()
    return int(left.value.code or 0), capsys.readouterr().err


def test_show_batch_knows_the_phase_of_a_step(good_recipe, run, tmp_path, monkeypatch, capsys):
    save(good_recipe, [*run, *LONGER], 8, 2)
    before, then = preflight(str(good_recipe), run, 1).batches, preflight(str(good_recipe), [*run, *LONGER], 1).batches
    file = tmp_path / "batch.npy"
    for step, options, wanted in ((5, run, before), (6, [*run, *LONGER], then.after(5)), (9, [*run, *LONGER], then.after(5))):
        assert shown(monkeypatch, capsys, good_recipe, *options, "--step", step, "--output", file)[0] == 0
        assert np.array_equal(np.load(file), wanted.rows(step, 0, wanted.global_batch).tokens)
    for step, options in ((5, [*run, *LONGER]), (6, run)):
        status, said = shown(monkeypatch, capsys, good_recipe, *options, "--step", step, "--output", file)
        assert status == 2 and said.startswith(f"--step {step}: ") and said.count("\n") == 1
