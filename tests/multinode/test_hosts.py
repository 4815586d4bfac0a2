"""The test hosts themselves: cables that can be cut and slowed, and hosts that die without a word."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.multinode.hosts import Hosts, hosts_of, succeeded

ANSWER = ("ssh", "-o", "ConnectTimeout=2", "host2", "hostname")
AGAIN = ("ssh", "-o", "ConnectionAttempts=30", "host2", "hostname")  # host1 remembers for a moment that nobody was there


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with hosts_of(1, 1, 1) as hosts:
        yield hosts


def test_a_cable_is_cut_and_mended(hosts):
    hosts.do("cut", 2)
    assert hosts.on(1, *ANSWER).returncode == 255
    assert hosts.on(1, "ssh", "host3", "hostname").stdout == "host3\n"
    hosts.do("mend", 2)
    assert succeeded(hosts.on(1, *AGAIN)).stdout == "host2\n"


def test_a_slow_cable_is_slow_until_it_is_mended(hosts):
    hosts.do("slow", 2, "4mbit")
    began = time.monotonic()
    succeeded(hosts.on(1, "sh", "-c", "head -c 1000000 /dev/zero | ssh host2 'cat > /dev/null'"))
    assert time.monotonic() - began > 1.5  # 8 million bits, less what the cable's queue lets through at once
    hosts.do("mend", 2)
    assert "tbf" not in hosts.on(2, "tc", "qdisc", "show").stdout


def test_a_killed_host_says_nothing_and_is_there_again_when_it_boots(hosts):
    """Its peers' connections stay open, as if it were only silent: nobody is told that they are of no use any more."""
    sleeper = subprocess.Popen(hosts.command(1, "ssh", "host2", "sleep", "300"))
    while "sleep 300" not in hosts.processes(2):
        time.sleep(0.05)
    hosts.do("kill", 2)
    time.sleep(0.5)
    assert sleeper.poll() is None
    assert hosts.on(1, *ANSWER).returncode == 255
    hosts.do("boot", 2)
    assert succeeded(hosts.on(1, *AGAIN)).stdout == "host2\n"
    assert hosts.processes(2) == []
    sleeper.kill()  # which has not been told to this day
    sleeper.wait()
