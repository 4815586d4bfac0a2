"""What the hosts' answers mean."""

import pytest

from megatron_ngpt.cluster import judge
from megatron_ngpt.cluster.hostfile import Host
from megatron_ngpt.cluster.links import rounds

GIB = 2**30
NETWORKS = {"addresses": ["10.0.0.1"], "names": ["lo", "eth0"], "own": "10.0.0.1", "wanted": {}}
ALONE = {"problems": [], "devices": {"kind": "H100", "count": 2, "free": [70 * GIB, 70 * GIB]}, "networks": NETWORKS, "output": "runs/a"}


def test_a_clock_is_compared_with_the_others():
    even = {"a": (0.0, 0.01), "b": (0.4, 0.01), "c": (-0.4, 0.01)}
    assert judge.clocks(even) == {}
    assert list(judge.clocks(even | {"c": (-7.0, 0.01)})) == ["c"]
    assert judge.clocks({"a": (5.0, 0.01), "b": (0.0, 0.01)}) == {"b": ["its clock is 5.0 s behind a's; let NTP set it"]}
    assert judge.clocks({"a": (0.0, 0.01), "b": (3.0, 4.0)}) == {}  # an answer that took so long tells nothing


@pytest.mark.parametrize(
    ("slots", "change", "told"),
    [
        (2, {}, None),
        (4, {}, "has 2 × H100, and the hostfile gives it 4 slots; write slots=2"),
        (2, {"needed": 75 * GIB}, "70.0 GiB of memory are free for a rank, which needs about 75.0 GiB"),
        (2, {"room": {"asked": 9 * GIB, "free": 8 * GIB, "keep": 2}}, "8.0 GiB are free; checkpoint.keep = 2 and one"),
        (2, {"networks": NETWORKS | {"wanted": {"NCCL_SOCKET_IFNAME": "ib"}}}, "NCCL_SOCKET_IFNAME = ib: has no such network interface"),
        (2, {"networks": NETWORKS | {"wanted": {"NCCL_SOCKET_IFNAME": "eth"}}}, None),  # a beginning is enough
        (2, {"networks": NETWORKS | {"wanted": {"NCCL_SOCKET_IFNAME": "^docker"}}}, None),
        (2, {"networks": NETWORKS | {"own": "127.0.1.1"}}, "its own name leads to 127.0.1.1"),
        (2, {"networks": NETWORKS | {"addresses": []}}, "has no network address"),
    ],
)  # fmt: skip
def test_a_host_by_itself(slots, change, told):
    lines = judge.alone(Host("a", slots), ALONE | change)
    assert (told is None and lines == []) or (len(lines) == 1 and told in lines[0])


def test_what_differs_is_told_of_the_host_that_is_not_like_the_others():
    def facts(deepspeed: str = "0.19.8", data: str = "x", files: tuple = ("d.bin",)) -> dict:
        return {"versions": {"deepspeed": deepspeed}, "recipe": "r", "files": dict.fromkeys(files, data), "problems": []}

    assert judge.together({"a": facts(), "b": facts(), "c": facts()}) == {}
    assert judge.together({"a": facts("0.19.7"), "b": facts(), "c": facts()}) == {
        "a": ["deepspeed is 0.19.7, on the others 0.19.8; install one version everywhere"]
    }
    assert judge.together({"a": facts(), "b": facts(data="y")}) == {"b": ["d.bin: its content differs from a; copy it again"]}
    assert judge.together({"a": facts(), "b": facts(files=())}) == {"b": ["d.bin: no such file, and other hosts have it"]}


def test_a_device_that_computes_something_else():
    assert judge.losses({"a": [5.5, 5.5], "b": [5.5000001, 5.5]}) == {}
    assert list(judge.losses({"a": [5.5, 5.5], "b": [5.5, 5.6]})) == ["b"]
    assert list(judge.losses({"a": [5.5, 5.5], "b": [5.5, float("nan")]})) == ["b"]


def test_slow_links_are_those_below_half_of_what_links_have():
    links = {("a", "b"): (1e9, 1e-5), ("a", "c"): (0.7e9, 1e-5), ("b", "c"): (0.3e9, 1e-5)}
    assert judge.slow(links) == {("b", "c")}
    assert judge.slow({}) == set()


@pytest.mark.parametrize("world", [2, 3, 4, 7, 8])
def test_all_pairs_meet_once_and_nobody_twice_in_a_round(world):
    found = rounds(world)
    assert sorted(pair for pairs in found for pair in pairs) == [(a, b) for a in range(world) for b in range(a + 1, world)]
    assert all(len({rank for pair in pairs for rank in pair}) == 2 * len(pairs) for pairs in found)
    assert len(found) == world - 1 + world % 2
