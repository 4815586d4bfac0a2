"""What the map of shards assumes of DeepSpeed is asserted: wrong structures are refused, in one line that names the parameter."""

import re
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from torch import nn

from megatron_ngpt.errors import ConfigError
from megatron_ngpt.parallel.assumptions import TRIED, check_runs, checked_shards
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.placement import parameter
from tests.records import record

REPOSITORY = Path(__file__).resolve().parents[2]


def model() -> nn.ParameterList:
    return nn.ParameterList([parameter(record((3, 4), name="matrix"), Axis()), parameter(record((5,), name="scale"), Axis())])


def fragment(start: int, count: int, offset: int, group: int = 0) -> SimpleNamespace:
    """What DeepSpeed's ZeRO-1, ZeRO-2 and BF16 optimisers tell about a parameter: its run, and the run's place in the flat buffer."""
    where = SimpleNamespace(start=offset, numel=count)
    return SimpleNamespace(
        lp_fragment_address=SimpleNamespace(start=start, numel=count), param_group_index=group, get_hp_fragment_address=lambda: where
    )


class Zero2:
    """One rank of ZeRO-2 as the map of shards knows it: 12 and 5 numbers in a buffer of 18; tests break one thing each."""

    def __init__(self):
        self.module = model()
        self.buffer = torch.zeros(18)
        self.optimizer = SimpleNamespace(single_partition_of_fp32_groups=[self.buffer])
        self.module[0]._hp_mapping, self.module[1]._hp_mapping = fragment(0, 12, 0), fragment(0, 5, 12)
        self.stepped = None

    def check(self) -> dict:
        buffers = self.optimizer.single_partition_of_fp32_groups if self.stepped is None else self.stepped
        return checked_shards(self.module, self.optimizer, torch.optim.AdamW(buffers), Axis())


class Zero3:
    """The same of ZeRO-3, which lends the base optimiser its partition only for a step."""

    def __init__(self):
        self.module = model()
        self.base = torch.optim.AdamW([torch.zeros(1)])
        self.optimizer = SimpleNamespace(
            optimizer=self.base, sub_group_to_group_id={0: 0}, fp32_partitioned_groups_flat=[torch.zeros(17)],
            grad_position={0: [0, 0, 12], 1: [0, 12, 5]}, get_param_id=lambda p: p.ds_id,
        )  # fmt: skip
        for number, p in enumerate(self.module):
            p.ds_id, p._z3_optimizer, p.ds_numel = number, self.optimizer, p.numel()
            p.ds_tensor, p.ds_process_group = SimpleNamespace(ds_numel=p.numel()), None

    def check(self) -> dict:
        return checked_shards(self.module, self.optimizer, self.base, Axis())


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr("megatron_ngpt.parallel.shards.dist.get_rank", lambda group=None: 0)


def check_refused(held, name: str, what: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        held.check()
    told = str(refusal.value)
    assert told.startswith(f"parameter {name}: ") and what in told and "\n" not in told
    assert f"DeepSpeed {deepspeed.__version__}" in told and f"({TRIED})" in told


def test_right_structures_pass():
    for held in (Zero2(), Zero3()):
        assert {name: shard.count for name, shard in held.check().items()} == {"matrix": 12, "scale": 5}
    plain = model()
    checked_shards(plain, None, torch.optim.AdamW(plain.parameters()), Axis())


def test_a_master_that_is_not_fp32():
    held = Zero2()
    held.optimizer.single_partition_of_fp32_groups = [torch.zeros(18, dtype=torch.bfloat16)]
    check_refused(held, "matrix", "its master is bfloat16, not float32")


def test_a_bf16_parameter_whose_mapping_has_another_name_is_not_taken_for_its_own_master():
    held = Zero2()
    placement = held.module[1].placement
    held.module[1] = nn.Parameter(held.module[1].detach().bfloat16())
    held.module[1].placement = placement
    held.stepped = [held.buffer, *held.module.parameters()]
    check_refused(held, "scale", "its master is bfloat16")


def test_a_master_that_the_base_optimiser_does_not_step():
    held = Zero2()
    held.stepped = [held.buffer.clone()]
    check_refused(held, "matrix", "the base optimiser does not step its master")


def test_a_partition_that_zero3_never_lends_to_the_base_optimiser():
    held = Zero3()
    held.optimizer.sub_group_to_group_id = {}
    check_refused(held, "matrix", "the base optimiser does not step its master")
    held = Zero3()
    held.optimizer.optimizer = SimpleNamespace()
    check_refused(held, "matrix", "the base optimiser does not step its master")


def test_masters_that_overlap_or_leave_their_buffer():
    held = Zero2()
    held.module[1]._hp_mapping = fragment(0, 5, 11)
    check_refused(held, "scale", "its master shares numbers with that of matrix")
    held.module[1]._hp_mapping = fragment(0, 5, 14)
    check_refused(held, "scale", "its master ends at 19 of a buffer of 18")


@pytest.mark.parametrize("start, count", [(0, 11), (1, 11)])
def test_a_piece_that_no_rank_holds(start, count):
    held = Zero2()
    held.module[0]._hp_mapping = fragment(start, count, 0)
    check_refused(held, "matrix", f"its 12 numbers are held as [({start}, {count})]")


def test_a_parameter_that_no_rank_holds():
    held = Zero2()
    held.module[0]._hp_mapping = None
    check_refused(held, "matrix", "its 12 numbers are held as nothing")


def test_an_attribute_that_is_gone():
    held = Zero2()
    del held.module[1]._hp_mapping.get_hp_fragment_address
    check_refused(held, "scale", "where its master lies can't be read (AttributeError")
    held = Zero3()
    held.optimizer.grad_position.pop(1)
    check_refused(held, "scale", "where its master lies can't be read (KeyError")


def test_runs_of_several_ranks_cover_a_parameter_exactly_once():
    check_runs({"w": 10}, [{"w": (4, 6)}, {"w": (0, 4)}, {"w": (0, 0)}], replicas=False)
    check_runs({"w": 10}, [{"w": (0, 10)}, {"w": (0, 10)}], replicas=True)
    for runs, replicas in [
        ([(0, 4), (5, 5)], False),  # a number that nobody holds
        ([(0, 5), (4, 6)], False),  # one that two hold
        ([(0, 10), (0, 10)], False),  # replicas where ZeRO should have cut
        ([(0, 4), (4, 7)], False),  # beyond the end
        ([(0, 4), (4, 6)], True),  # cut where each rank should hold all
        ([(0, 10), (0, 0)], True),
    ]:
        with pytest.raises(ConfigError, match="parameter w: its 10 numbers are held as"):
            check_runs({"w": 10}, [{"w": run} for run in runs], replicas)


def test_the_version_tried_is_the_one_installed_and_the_newest_that_setup_allows():
    assert f"deepspeed=={TRIED}\n" in (REPOSITORY / "constraints.txt").read_text()
    lower, upper = re.search(r'"deepspeed>=([\d.]+),<([\d.]+)"', (REPOSITORY / "setup.py").read_text()).groups()
    major, minor, patch = map(int, TRIED.split("."))
    assert (lower, upper) == (TRIED, f"{major}.{minor}.{patch + 1}")
    torch_cap = re.search(r'"torch>=([\d.]+),<([\d.]+)"', (REPOSITORY / "setup.py").read_text()).groups()
    tried = re.search(r"torch==(\d+)\.(\d+)", (REPOSITORY / "constraints.txt").read_text()).groups()
    assert torch_cap == (".".join(tried), f"{tried[0]}.{int(tried[1]) + 1}")
