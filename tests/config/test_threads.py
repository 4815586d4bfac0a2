"""Threads of a rank: its share of the host's cores, unless OMP_NUM_THREADS says otherwise; too many are told."""

import pytest

from megatron_ngpt.config import threads
from megatron_ngpt.config.place import Place
from megatron_ngpt.config.threads import choose_threads, crowded, ranks_here
from megatron_ngpt.errors import ConfigError

TWO, FOUR = {"LOCAL_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Makes a host of so many cores with two processors each, of which this process may use some."""

    def make(cores, bound=None):
        for number in range(2 * cores):
            path = tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list"
            path.parent.mkdir(parents=True)
            path.write_text(f"{number % cores},{number % cores + cores}\n")
        everything = set(range(2 * cores))
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: everything if process or bound is None else set(bound))
        (tmp_path / "cpu.max").write_text("max 100000\n")
        monkeypatch.setattr(threads, "CPUS", tmp_path)
        monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")

    return make


def test_ranks_share_the_cores(host):
    host(8)
    assert choose_threads({}, Place()) == 8
    assert choose_threads(TWO, Place(1, 2, 1)) == 4 and choose_threads(FOUR, Place(5, 8, 1)) == 2
    assert choose_threads({}, Place(3, 16, 3)) == 1
    assert choose_threads(TWO | {"OMP_NUM_THREADS": "3"}, Place(1, 2, 1)) == 3
    assert choose_threads({"OMP_NUM_THREADS": "6,2"}, Place()) == 6


def test_a_rank_that_is_bound_uses_its_own_cores_and_a_container_its_quota(host):
    host(8, bound=[0, 1, 8, 9])
    assert choose_threads(TWO, Place(0, 2, 0)) == 2 and crowded(TWO, Place(0, 2, 0)) is None
    assert "OMP_NUM_THREADS=2" in crowded(TWO | {"OMP_NUM_THREADS": "4"}, Place(0, 2, 0))
    threads.QUOTA.write_text("200000 100000\n")
    assert choose_threads(TWO, Place(0, 2, 0)) == 1


def test_too_many_are_told_in_a_line(host):
    host(2)
    assert crowded(TWO, Place(0, 2, 0)) is None and crowded(TWO | {"OMP_NUM_THREADS": "1"}, Place(0, 2, 0)) is None
    assert crowded(TWO | {"OMP_NUM_THREADS": "2"}, Place(0, 2, 0)) == (
        "warning: 2 ranks with 2 threads each on 2 cores of this host, where they wait for each other; "
        "unset OMP_NUM_THREADS, or OMP_NUM_THREADS=1"
    )
    assert crowded(FOUR, Place(0, 4, 0)).endswith("4 ranks with 1 thread each on 2 cores of this host, where they wait for each other; "
                                                  "fewer ranks would be faster")


@pytest.mark.parametrize(("said", "count"), [
    (TWO, 2), (FOUR, 4), ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 4), ({"CROSS_SIZE": "2"}, 4), ({"SLURM_STEP_NUM_NODES": "3"}, 3), ({}, 8),
])
def test_ranks_of_this_host(said, count):
    assert ranks_here(said, Place(0, 8, 0)) == count


@pytest.mark.parametrize("value", ["x", "0", "-1", "2x"])
def test_a_number_that_is_none_is_refused(host, value):
    host(2)
    with pytest.raises(ConfigError, match=f"^OMP_NUM_THREADS = '{value}': must be a whole number from 1 on"):
        choose_threads({"OMP_NUM_THREADS": value}, Place())
