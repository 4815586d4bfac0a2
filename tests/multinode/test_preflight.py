"""`ngpt preflight` on test hosts: nothing wrong, and one thing wrong at a time, which it names in one line.

Hosts share their files; what is different on one of them is mounted there.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.multinode.hosts import ENVIRONMENT, Hosts, hosts_of

SECONDS = 60  # in which a cause must be named, on a machine that does nothing else; a busy one gets more
FAKE_TIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts of one slot each."""
    with hosts_of(1, 1, 1) as hosts:
        yield hosts


@pytest.fixture
def look(hosts, corpus, tmp_path):
    """Runs `ngpt preflight` on host1, with further options and variables of `.deepspeed_env`: (exit status, lines)."""
    (tmp_path / "run").mkdir()

    def look(*options: str, **variables: str) -> tuple[int, list[str]]:
        (tmp_path / "environment").write_text("".join(f"{key}={value}\n" for key, value in (ENVIRONMENT | variables).items()))
        began = time.monotonic()
        done = hosts.on(
            1, sys.executable, "-m", "megatron_ngpt", "preflight", "--hostfile", hosts.hostfile, corpus / "recipe.yaml",
            f"--training.output={tmp_path / 'run'}", *options, seconds=4 * SECONDS, DS_ENV_FILE=str(tmp_path / "environment"),
        )  # fmt: skip
        assert time.monotonic() - began < 3 * SECONDS
        assert not done.stderr, done.stderr
        assert list((tmp_path / "run").iterdir()) == []  # nothing of it is left
        while left := [line for k in (1, 2, 3) for line in hosts.processes(k) if "megatron_ngpt" in line]:
            assert time.monotonic() - began < 3 * SECONDS, left
            time.sleep(0.2)
        return done.returncode, done.stdout.splitlines()

    return look


@contextmanager
def mounted(hosts: Hosts, k: int, *mount: str | Path) -> Iterator[None]:
    """Something mounted on host k alone; the last word is the place."""
    assert hosts.on(k, "mount", *mount).returncode == 0
    try:
        yield
    finally:
        hosts.on(k, "umount", "--lazy", mount[-1])


def assert_one_line(found: tuple[int, list[str]], host: str, *parts: str) -> None:
    """Exit status 2, and of the one host that is wrong a line with these parts."""
    status, lines = found
    wrong = [line for line in lines if "  WRONG  " in line]
    assert status == 2 and len(wrong) == 1 and wrong[0].split()[0] == host, lines
    assert all(part in wrong[0] for part in parts) and " | " not in wrong[0], lines


def test_nothing_wrong_and_a_slow_cable(hosts, look):
    hosts.do("slow", 2, "40mbit")
    try:
        status, lines = look()
    finally:
        hosts.do("mend", 2)
    assert status == 0 and [line.split()[:2] for line in lines[:3]] == [["host1", "ok"], ["host2", "ok"], ["host3", "ok"]], lines
    losses = {line.partition("tiny model's loss ")[2] for line in lines[:3]}
    assert len(losses) == 1 and 5 < float(losses.pop()) < 6  # ln 256 = 5.5
    marked = {tuple(line.split()[:3]): line.endswith("slow") for line in lines if " - " in line}
    assert marked == {("host1", "-", "host2"): True, ("host1", "-", "host3"): False, ("host2", "-", "host3"): True}, lines
    assert "3 ranks can train on 3 hosts" in lines[-1]


def test_other_data_on_one_host(hosts, look, corpus, tmp_path):
    changed = bytearray((corpus / "a.bin").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "a.bin").write_bytes(changed)
    with mounted(hosts, 2, "--bind", tmp_path / "a.bin", corpus / "a.bin"):
        assert_one_line(look(), "host2", f"{corpus / 'a.bin'}: its content differs from the others; copy it again")


def test_ranks_would_meet_on_a_network_that_others_do_not_have(hosts, look):
    """What `hostname -I` shows first is where DeepSpeed's launcher has the ranks meet."""
    for words in (["flush", "dev", "eth0"], ["add", "192.0.2.1/32", "dev", "eth0"], ["add", "10.78.0.11/24", "dev", "eth0"]):
        assert hosts.on(1, "ip", "address", *words).returncode == 0
    try:
        status, lines = look()
    finally:
        hosts.on(1, "ip", "address", "delete", "192.0.2.1/32", "dev", "eth0")
    wrong = [line for line in lines if "WRONG" in line]
    assert status == 2 and [line.split()[0] for line in wrong] == ["host2", "host3"], lines
    assert all("can't reach 192.0.2.1" in line and "--master_addr host1" in line for line in wrong), lines


@pytest.mark.heavy
def test_an_interface_that_is_not_there(hosts, look):
    status, lines = look(GLOO_SOCKET_IFNAME="eth9")
    assert status == 2 and "GLOO_SOCKET_IFNAME = eth9: has no such network interface; choose of lo, eth0" in lines[0], lines


@pytest.mark.heavy
def test_a_host_that_its_cable_does_not_reach(hosts, look):
    hosts.do("cut", 2)
    try:
        assert_one_line(look(), "host2", "nothing answers at its address")
    finally:
        hosts.do("mend", 2)
        hosts.on(1, "ssh", "-o", "ConnectionAttempts=30", "host2", "true")


@pytest.mark.heavy
def test_a_host_that_does_not_take_our_key(hosts, look, tmp_path):
    (tmp_path / "key.pub").write_text("")
    with mounted(hosts, 2, "--bind", tmp_path / "key.pub", hosts.folder / "key.pub"):
        assert_one_line(look(), "host2", "no login with this user's key", "Permission denied (publickey")


@pytest.mark.heavy
def test_another_version_of_deepspeed(hosts, look, tmp_path):
    version, installed = importlib.metadata.version("deepspeed"), Path(str(importlib.metadata.distribution("deepspeed")._path))
    old = (installed / "METADATA").read_text().replace(f"\nVersion: {version}\n", "\nVersion: 0.18.1\n")
    (tmp_path / "METADATA").write_text(old)
    with mounted(hosts, 2, "--bind", tmp_path / "METADATA", installed / "METADATA"):
        assert_one_line(look(), "host2", f"deepspeed is 0.18.1, on the others {version}; install one version everywhere")


@pytest.mark.heavy
def test_data_that_one_host_lacks(hosts, look, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "data")
    for path in (tmp_path / "data").glob("a.*"):
        path.unlink()
    with mounted(hosts, 2, "--bind", tmp_path / "data", corpus):
        assert_one_line(look(), "host2", "data.train.0.prefix", str(corpus / "a"))


@pytest.mark.heavy
def test_a_port_that_is_taken(hosts, look):
    code = "import socket, sys; s = socket.create_server(('', 29500)); print('here', flush=True); sys.stdin.read()"
    other = subprocess.Popen(hosts.command(1, sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"here\n"
        assert_one_line(look(), "host1", "port 29500: Address already in use", "--master_port 29501")
    finally:
        other.communicate()


@pytest.mark.heavy
def test_too_few_slots(look):
    assert_one_line(look("--parallel.tensor=4"), "all", "parallel.tensor = 4", "must divide the number of ranks, 3")


@pytest.mark.heavy
def test_a_run_directory_that_one_host_cannot_write(hosts, look, tmp_path):
    with mounted(hosts, 2, "--bind", "-o", "ro", tmp_path / "run", tmp_path / "run"):
        assert_one_line(look(), "host2", f"training.output = {tmp_path / 'run'}: cannot write", "Read-only file system")


@pytest.mark.heavy
def test_a_run_directory_that_is_not_shared(hosts, look, tmp_path):
    with mounted(hosts, 2, "-t", "tmpfs", "tmpfs", tmp_path / "run"):
        found = look()
    assert_one_line(found, "host2", f"training.output = {tmp_path / 'run'}: what host1 writes there is not seen here")


@pytest.mark.heavy
def test_no_room_for_the_checkpoints(look):
    assert_one_line(look("--checkpoint.keep=10000000"), "all", "are free; checkpoint.keep = 10000000 and one that is being written take")


@pytest.mark.heavy
@pytest.mark.skipif(not Path(FAKE_TIME).exists(), reason="not installed: faketime")
def test_a_clock_that_is_off(hosts, look, tmp_path):
    """Debian's bash reads .bashrc for commands over ssh; libfaketime shifts what processes see."""
    (tmp_path / "bashrc").write_text(f"export LD_PRELOAD={FAKE_TIME} FAKETIME=+90s\n")
    with mounted(hosts, 2, "--bind", tmp_path / "bashrc", Path.home() / ".bashrc"):
        assert_one_line(look(), "host2", "its clock is 90", "ahead of the other hosts'; let NTP set it")


@pytest.mark.parametrize(
    ("text", "told"),
    [("host1 slots=1\nhost2\n", "line 2: 'host2' is no host; write NAME slots=RANKS"), (None, "No such file or directory")],
)
def test_a_hostfile_that_is_malformed_or_missing(corpus, tmp_path, text, told):
    if text:
        (tmp_path / "hostfile").write_text(text)
    command = [sys.executable, "-m", "megatron_ngpt", "preflight", "--hostfile", tmp_path / "hostfile", corpus / "recipe.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * SECONDS)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert f"--hostfile {tmp_path / 'hostfile'}" in done.stderr and told in done.stderr
