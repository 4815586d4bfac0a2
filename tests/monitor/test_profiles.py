"""Profiles of the steps and ranks that were asked for: real traces, and what becomes of a run whose profile fails."""

import gzip
import json

import pytest
import torch

from megatron_ngpt.config.recipe import Profile
from megatron_ngpt.monitor.profiles import Profiles

CPU = torch.device("cpu")


def run(folder, wanted: Profile, steps, asked=None, rank=0, ends=None) -> list[str]:
    """What is told in a run of `steps` in which `asked` (step: rank) asks for profiles, and which `ends` before its last step's end."""
    told = []
    profiles = Profiles(folder, wanted, rank, CPU, told.append)
    for step in steps:
        profiles.begin(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        if step == ends:
            break
        profiles.end(step, (asked or {}).get(step))
    profiles.close(step)
    return told


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def ranges(file) -> list[str]:
    """The steps that a trace has, in order."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)
    found = [event for event in events if event.get("ph") == "X" and event.get("name", "").startswith("step ")]
    return list(dict.fromkeys(event["name"] for event in sorted(found, key=lambda event: event["ts"])))


def test_a_trace_and_a_table_of_the_steps_that_the_recipe_names(tmp_path):
    told = run(tmp_path, Profile(steps=[2, 3]), range(1, 6))
    name = "steps-00000002-00000003-rank-00000"
    assert names(tmp_path) == [f"{name}.trace.json.gz", f"{name}.txt"]
    assert ranges(tmp_path / f"{name}.trace.json.gz") == ["step 2", "step 3"]
    assert "aten::mm" in (tmp_path / f"{name}.txt").read_text()
    assert told == [f"profile of steps 2 to 3 written: {tmp_path / name}.trace.json.gz"]


@pytest.mark.parametrize(("wanted", "asked", "rank", "windows"), [
    (Profile(), {}, 0, []),
    (Profile(steps=[2, 3]), {}, 1, []),
    (Profile(steps=[2, 3], ranks=[1]), {}, 1, [(2, 3)]),
    (Profile(), {4: 0}, 0, [(5, 7)]),
    (Profile(), {4: 2}, 0, [(5, 7)]),
    (Profile(ranks=[]), {4: 2}, 0, []),
    (Profile(ranks=[]), {4: 2}, 2, [(5, 7)]),
    (Profile(steps=[8, 8]), {2: 0, 3: 0}, 0, [(3, 5), (8, 8)]),  # asked again while under way
    (Profile(steps=[9, 20]), {}, 0, [(9, 9)]),  # as far as the run goes
])
def test_when_and_where(tmp_path, wanted, asked, rank, windows):
    run(tmp_path, wanted, range(1, 10), asked, rank)
    found = [name for name in names(tmp_path) if name.endswith(".txt")]
    assert found == [f"steps-{first:08}-{last:08}-rank-{rank:05}.txt" for first, last in windows]


def test_a_run_that_ends_within_a_step_leaves_what_it_has(tmp_path):
    run(tmp_path, Profile(steps=[2, 9]), range(1, 6), ends=3)
    assert ranges(tmp_path / "steps-00000002-00000003-rank-00000.trace.json.gz") == ["step 2", "step 3"]


def test_a_profile_that_cannot_be_written_harms_nobody(tmp_path):
    (tmp_path / "file").touch()
    told = run(tmp_path / "file", Profile(steps=[2, 2]), range(1, 5))
    assert len(told) == 1 and told[0].startswith("warning: no profile on rank 0: ") and told[0].endswith("; training goes on")
