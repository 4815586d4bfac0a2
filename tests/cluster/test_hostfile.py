"""Hostfiles and `.deepspeed_env`, read by DeepSpeed's own rules."""

import sys

import pytest

from megatron_ngpt.cluster.hostfile import Host, passed_on, read_hostfile
from megatron_ngpt.errors import ConfigError


def written(tmp_path, text: str) -> str:
    (tmp_path / "hostfile").write_text(text)
    return str(tmp_path / "hostfile")


def test_hosts_in_order_as_deepspeed_reads_them(tmp_path):
    path = written(tmp_path, "# ours\n\nnode2   slots=8\nnode1 slots=4 # old\n")
    assert read_hostfile(path) == [Host("node2", 8), Host("node1", 4)]
    sys.modules.pop("deepspeed", None)
    from deepspeed.launcher.runner import fetch_hostfile

    assert list(fetch_hostfile(path).items()) == [("node2", 8), ("node1", 4)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("node1 slots=2\nnode2: 2\n", ["line 2: 'node2: 2' is no host; write NAME slots=RANKS"]),
        ("node1\nnode2 slots=x\n", ["line 1: 'node1' is no host", "line 2: 'node2 slots=x' is no host"]),
        ("node1 slots=2\nnode1 slots=4\n", ["line 2: 'node1 slots=4': node1 is in line 1 already"]),
        ("node1 slots=0\n", ["line 1: 'node1 slots=0' has no slots"]),
        ("# none\n", ["names no host"]),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, text, told):
    with pytest.raises(ConfigError) as raised:
        read_hostfile(written(tmp_path, text))
    assert len(raised.value.problems) == len(told)
    assert all(part in line for part, line in zip(told, raised.value.problems, strict=True))


def test_a_missing_hostfile_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"--hostfile .*/none: No such file or directory; give a file"):
        read_hostfile(str(tmp_path / "none"))


def test_remote_ranks_get_what_the_launcher_passes_on(tmp_path):
    (tmp_path / "of_ours").write_text("OMP_NUM_THREADS=8\nA=b=c\n")
    environment = {"DS_ENV_FILE": str(tmp_path / "of_ours"), "NCCL_DEBUG": "INFO", "HOME": "/nowhere", "PYTHONPATH": "/lib"}
    assert passed_on(environment, tmp_path) == {
        "NCCL_DEBUG": "INFO", "PYTHONPATH": f"{tmp_path}:/lib", "OMP_NUM_THREADS": "8", "A": "b=c"
    }  # fmt: skip
    (tmp_path / "of_ours").write_text("# threads\nOMP_NUM_THREADS=8\n")
    with pytest.raises(ConfigError, match=r"of_ours, line 1: '# threads' ends DeepSpeed's launcher; only NAME=value lines"):
        passed_on(environment, tmp_path)
