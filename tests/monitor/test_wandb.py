"""Weights & Biases without a network: what its own package reads back from its files."""

import io
import json
import struct

import pytest

from megatron_ngpt.monitor.monitor import Monitor
from tests.browser import until
from tests.monitor.recipes import recipe

pytest.importorskip("wandb", reason="the package wandb is not installed (the extra 'test' has it)")


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """No key, no network, no settings of a person."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def records(file) -> list:
    """Of a run's file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind, part of a record) after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, found, whole = file.read_bytes(), 7, [], b""
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        whole += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


def start(folder, begun: int) -> None:
    console = io.StringIO()
    monitor = Monitor(recipe(folder, ["wandb"]), begun, 0, console)
    monitor.scalars(begun + 1, {"valid_loss": 2.5, "valid": {"web": 2.0, "code": None}})
    monitor.text(begun + 1, "sample", "1 < 2")
    monitor.close()
    assert "warning" not in console.getvalue()


def test_values_and_the_recipe_are_there_and_a_resumed_run_goes_on(tmp_path):
    start(tmp_path / "run", 0)
    start(tmp_path / "run", 7)
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    until(lambda: all(sum(one.HasField("history") for one in records(file)) == 2 for file in files))  # wandb's own process writes them
    first, again = [records(file) for file in files]
    for begun, found in ((0, first), (7, again)):
        lines = [{item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json) for item in one.history.item}
                 for one in found if one.HasField("history")]
        assert {"step": begun + 1, "valid_loss": 2.5, "valid/web": 2.0}.items() <= lines[0].items()
        assert lines[1]["step"] == begun + 1 and "sample" in lines[1]
        [config] = [{item.key: json.loads(item.value_json) for item in one.run.config.update} for one in found if one.HasField("run")][:1]
        assert config["model"]["hidden"] == 256
    ids = {one.run.run_id for found in (first, again) for one in found if one.HasField("run")}
    assert ids == {(tmp_path / "run" / "wandb" / "id").read_text()}


def test_a_run_that_starts_over_is_another_there(tmp_path):
    for _ in range(2):
        start(tmp_path / "run", 0)
    assert len({file.name for file in (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")}) == 2
