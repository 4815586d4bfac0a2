"""Restarts without a new checkpoint are counted, and end."""

import pytest

from megatron_ngpt.checkpoint.reading import Reading
from megatron_ngpt.errors import ConfigError, DamagedError
from megatron_ngpt.training import restarts
from megatron_ngpt.training.restarts import LIMIT, count_restarts, patiently


def start(output, number: int | str, name: str = "NGPT_RESTART") -> None:
    """As rank 0 does, and rank 1 before and after it."""
    for writes in (False, True, False):
        count_restarts(output, {name: str(number)}, writes)


def save(output, step: int) -> None:
    (output / "checkpoints").mkdir(exist_ok=True)
    (output / "checkpoints" / "latest").write_text(f"step-{step:08}\n")


@pytest.mark.parametrize("name", restarts.COUNTS)
def test_restarts_without_a_new_checkpoint_end_in_one_line(tmp_path, name):
    start(tmp_path, 0, name)
    save(tmp_path, 5)
    for number in range(1, LIMIT + 1):
        start(tmp_path, number, name)
    with pytest.raises(ConfigError, match=f"started again {LIMIT} times without a checkpoint newer than step-00000005"):
        start(tmp_path, LIMIT + 1, name)


def test_a_new_checkpoint_or_a_person_begins_anew(tmp_path):
    for number in range(1, 3 * LIMIT):
        save(tmp_path, number)
        start(tmp_path, number)
    for number in range(100, 100 + LIMIT - 1):
        start(tmp_path, number)
    start(tmp_path, 0)
    assert not (tmp_path / restarts.FILE).exists()
    for number in range(200, 200 + LIMIT):
        start(tmp_path, number)
    with pytest.raises(ConfigError):
        start(tmp_path, 300)


def test_a_checkpoint_that_was_put_aside_is_no_new_one(tmp_path):
    save(tmp_path, 5)
    for number in range(1, LIMIT + 1):
        start(tmp_path, number)
    save(tmp_path, 4)
    with pytest.raises(ConfigError):
        start(tmp_path, LIMIT + 1)


def test_a_restart_waits_for_the_run_before_it_and_a_person_does_not(monkeypatch):
    tries = []

    def take() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ConfigError("in use")
        return 7

    assert patiently(take, {"NGPT_RESTART": "1"}) == 7
    tries.clear()
    with pytest.raises(ConfigError):
        patiently(take, {})
    tries.clear()
    monkeypatch.setattr(restarts, "PATIENCE", 0.0)
    with pytest.raises(ConfigError):
        patiently(take, {"NGPT_RESTART": "1"})


def test_a_checkpoint_that_ends_its_reader_twice_is_damaged(tmp_path):
    one, other = tmp_path / "step-00000005", tmp_path / "step-00000010"
    Reading(tmp_path).begin(other)
    Reading(tmp_path).begin(one)
    Reading(tmp_path).begin(one)
    with pytest.raises(DamagedError, match="step-00000005: 2 starts in a row ended while they read it"):
        Reading(tmp_path).begin(one)
    Reading(tmp_path).end()
    Reading(tmp_path).begin(one)
