"""Who is behind, and in which words: from reports alone."""

from dataclasses import replace

import pytest

from megatron_ngpt.checkpoint import saver
from megatron_ngpt.config.recipe import Watchdog
from megatron_ngpt.monitor.clock import COMMUNICATION
from megatron_ngpt.monitor.clock import PHASES as CLOCK
from megatron_ngpt.watchdog.judge import Look, Report, behind, gone_line, hang_line, named, overdue
from megatron_ngpt.watchdog.sections import FORWARD_BACKWARD, LAST_SAVE, PHASES, SAVE, SECTIONS, collective_seconds, limit, meeting_seconds
from megatron_ngpt.watchdog.stacks import Place, read_place
from megatron_ngpt.watchdog.stragglers import Stragglers

KEYS = {"start": 600, "step": 60, "save": 900, "evaluation": 0}
WAITS, WORKS, SILENT = Look("a.py:1 in f", True), Look("b.py:2 in g", False), Look("", False)


def report(rank: int, beats: int = 5, **values) -> Report:
    usual = {"stage": 0, "step": 7, "section": FORWARD_BACKWARD.number, "limit": 60.0, "age": 61.0}
    usual |= {"letter": "S", "busy": 0.0, "measured": 0}
    return Report(rank=rank, host=f"node{rank // 2 + 1}", log=f"logs/rank-{rank:05}.log", beats=beats, **{**usual, **values})


def found(reports: list[Report], **looks: Look) -> list[int]:
    return [r.rank for r in behind({r.rank: r for r in reports}, {int(name[1:]): look for name, look in looks.items()})]


def test_who_got_least_far_is_behind():
    assert found([report(0), report(1), report(2, 4), report(3)], r0=WAITS, r1=WAITS, r2=WORKS, r3=WAITS) == [2]


@pytest.mark.parametrize("of_2", [WORKS, SILENT])
def test_of_equally_far_ones_who_waits_for_nobody_is_behind(of_2):
    assert found([report(0), report(1), report(2), report(3)], r0=WAITS, r1=WAITS, r2=of_2, r3=WAITS) == [2]


def test_a_stopped_rank_is_behind_and_where_all_wait_all_are():
    assert found([report(0), report(1, letter="T"), report(2)], r0=WAITS, r2=WORKS) == [1]
    assert found([report(0), report(1)], r0=WAITS, r1=WAITS) == [0, 1]
    assert found([report(0), report(1, beats=6, letter="T")], r0=WAITS) == [1]  # it was past what rank 0 waits for the rest of


def test_a_paused_run_is_not_late_and_a_rank_without_limit_never():
    assert overdue([report(0), report(1, age=1.0)])
    assert not overdue([report(0, letter="T"), report(1, letter="T")])
    assert overdue([report(0, letter="T"), report(1)])
    assert not overdue([report(0, limit=0.0, age=1e9), report(1, age=59.0)])


def test_the_words_name_rank_host_step_section_key_and_log():
    line = hang_line([report(2)], 4, {2: WORKS}, KEYS)
    assert line == (
        "rank 2 on node2 is behind: step 7, forward and backward, not further for 61 s (watchdog.step = 60), at b.py:2 in g; "
        "every rank is ended, stacks are in logs/rank-00002.log"
    )
    assert hang_line([report(0), report(1)], 2, {}, KEYS).startswith("none of 2 ranks gets further: step 7, forward")
    assert "(watchdog.start = 600)" in hang_line([report(0, limit=600.0)], 1, {}, KEYS)  # the first step compiles
    assert "; stopped by a signal; " in hang_line([report(2, letter="T")], 4, {2: SILENT}, KEYS)
    assert gone_line([report(2), report(3)], "was ended by SIGKILL").startswith("ranks 2, 3 on node2 was ended by SIGKILL: step 7")
    many = named([report(rank) for rank in range(20)])
    assert many.startswith("ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more on node1, ") and many.endswith(", node8 and 2 more")


def test_limits_follow_from_the_keys():
    assert limit(FORWARD_BACKWARD, KEYS, first=False) == 60 and limit(FORWARD_BACKWARD, KEYS, first=True) == 600
    assert limit(FORWARD_BACKWARD, KEYS | {"step": 0}, first=True) == 0 == limit(FORWARD_BACKWARD, KEYS | {"start": 0}, first=True)
    assert limit(LAST_SAVE, KEYS, first=False) == limit(SAVE, KEYS, first=False) + saver.PATIENCE
    assert [section.number for section in SECTIONS] == list(range(len(SECTIONS)))
    assert set(PHASES) == set(CLOCK) - {COMMUNICATION}


def test_torch_waits_longer_than_the_watchdogs_and_no_half_hour_more():
    keys = Watchdog().model_dump()
    longest = max(limit(section, keys, first) for section in SECTIONS for first in (False, True))
    assert longest < collective_seconds(keys) < longest + 1800
    assert collective_seconds(KEYS) > 1e6 and meeting_seconds(KEYS) == 600 and meeting_seconds(KEYS | {"start": 0}) > 1e6


MAIN = 0x7F2
DUMP = """noise
Thread 0x00007f1 [saver] (most recent call first):
  File "/v/torch/distributed/distributed_c10d.py", line 9 in broadcast
  File "/x/megatron_ngpt/checkpoint/saver.py", line 8 in _write

Current thread 0x00007f2 (most recent call first):
  File "/v/%s", line 456 in result
  File "/x/megatron_ngpt/checkpoint/saver.py", line 217 in wait
  File "/x/megatron_ngpt/training/loop.py", line 99 in _save
  File "/x/launch/pretrain.py", line 9 in <module>
"""


def test_a_stack_tells_the_place_and_whether_it_waits():
    place = "megatron_ngpt/checkpoint/saver.py:217 in wait"
    assert read_place(DUMP % "concurrent/futures/_base.py", MAIN) == Place(place, True)  # for a thread that waits for others
    assert read_place(DUMP % "torch/distributed/distributed_c10d.py", MAIN) == Place(place, True)
    assert read_place(DUMP % "x/megatron_ngpt/monitor/clock.py", MAIN) == Place(place, True)  # a collective of a step that is measured
    assert read_place(DUMP % "numpy/core.py", MAIN) == Place(place, False)
    assert read_place("no stack", MAIN) is None


def test_a_stack_that_is_still_written_tells_nothing():
    whole = DUMP % "numpy/core.py"
    ends = [at for at in range(len(whole)) if read_place(whole[:at], MAIN)]
    assert ends == [len(whole) - 1]
    assert read_place(whole.replace("/x/launch/pretrain.py", "/x/megatron_ngpt/f.py").replace("<module>", "deep") + "  ...\n", MAIN)
    other = whole.split("\n\n")
    assert read_place(f"{other[1]}\n{other[0]}", MAIN) == read_place(whole, MAIN)  # whatever the order of threads


def periods(slow: dict[int, float], count: int, stages: dict[int, int] | None = None) -> list[str]:
    """The lines over `count` periods of ten measured steps, in which ranks 0 to 5 work a second a step, the slow ones longer."""
    watching, lines = Stragglers(), []
    for number in range(count + 1):
        reports = [
            report(rank, busy=10.0 * number * slow.get(rank, 1.0), measured=10 * number, stage=(stages or {}).get(rank, 0))
            for rank in range(6)
        ]
        lines += [line for _, line in watching.compare(reports)]
    return lines


def test_who_is_slow_for_three_periods_is_named_once():
    assert periods({4: 1.5}, 2) == []
    assert periods({4: 1.5}, 6) == [
        "warning: rank 4 on node3 is slow: 1.5 s of work a step, where the median of the ranks with the same work is 1 s; all wait for it"
    ]
    assert "ranks 4, 5 on node3 are slow: 1.8 s" in periods({4: 1.5, 5: 1.8}, 3)[0]
    assert periods({4: 1.15}, 6) == []


def test_stages_are_compared_among_themselves_and_unmeasured_periods_do_not_count():
    assert periods({4: 1.5, 5: 1.5}, 6, stages={4: 1, 5: 1}) == []
    watching = Stragglers()
    assert [watching.compare([report(0), report(1)]) for _ in range(5)] == [[]] * 5


def test_a_rank_that_recovers_starts_anew():
    watching, told = Stragglers(), []
    totals = [0.0, 0.0]
    for number in range(12):
        totals[0] += 1.0
        totals[1] += 1.0 if number in (5, 6) else 2.0
        told += watching.compare([replace(report(rank), busy=totals[rank], measured=number + 1) for rank in (0, 1)])
    assert len(told) == 2
