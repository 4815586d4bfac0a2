"""Where the time of a step goes: phases that add up to it, and collectives that are told apart wherever they are called from."""

import time

import pytest
import torch
import torch.distributed as dist

from megatron_ngpt.monitor import clock as module
from megatron_ngpt.monitor.clock import PHASES, Clock
from tests.on_ranks import on_ranks

CPU = torch.device("cpu")


@pytest.fixture
def times(monkeypatch):
    """The clock reads 0, 1, 2, ... seconds."""
    ticks = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))


def test_phases_are_told_apart_and_add_up(times):
    clock = Clock(4, CPU)  # reads 0 and 1
    with clock.measured(5):
        with clock.within("data"):  # 2
            pass  # 3
        with clock.within("forward_backward"):  # 4
            with clock.within("communication"):  # 5
                pass  # 6
            clock.enter("optimizer")  # 7
            with clock.within("communication"):  # 8
                pass  # 9
        # 10, and 11 at the end
    assert clock.phases() == {"data": 1.0, "forward_backward": 2.0, "communication": 2.0, "optimizer": 2.0, "rest": 3.0}
    assert sum(clock.phases().values()) == 11 - 1 and clock.lap(5) == 12.0


def test_a_measured_step_begins_at_the_lap_before_it_or_where_it_begins(times):
    clock = Clock(0, CPU)  # 0, 1
    with clock.measured(1):
        pass  # 2
    assert clock.phases()["rest"] == 1.0
    with clock.measured(5):  # 3: steps 2 to 4 were not measured
        pass  # 4
    assert clock.phases()["rest"] == 1.0


def test_nothing_is_kept_of_steps_that_are_not_measured():
    clock = Clock(0, CPU)
    with clock.within("data"):
        clock.enter("optimizer")
    assert clock.phases() == dict.fromkeys(PHASES, 0.0)


def waiting_for_each_other() -> tuple[dict[str, float], dict[str, float], bool]:
    """Rank 1 comes 0.3 s late to an all-reduce, and to one that is waited for later: what rank 0's clock makes of both."""
    before, found = dict(vars(dist.ProcessGroup)), []
    for later in (False, True):
        clock = Clock(0, CPU)
        with clock.measured(1):
            if dist.get_rank() == 1:
                time.sleep(0.3)
            work = dist.all_reduce(torch.ones(3), async_op=later)
            if later:
                work.wait()
        found.append(clock.phases())
    return *found, before == dict(vars(dist.ProcessGroup))


def test_a_collective_counts_while_this_rank_waits_for_it():
    (at_once, later, restored), *_ = on_ranks(2, waiting_for_each_other)
    for phases in (at_once, later):
        assert phases["communication"] > 0.2 and phases["rest"] < 0.1
    assert restored
