"""Slurm itself on test hosts: its controller on host1, a daemon on every host, and munge, with which they trust each other."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY
from tests.multinode.hosts import ENVIRONMENT, VARIABLES, Hosts, succeeded

TOOLS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
DEAD = 15  # seconds without a host's answer after which Slurm gives it up

# Each host has a /run/munge of its own. It claims as many cores and GPUs as launch/slurm.sbatch asks for.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=host1
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=/run/munge/socket,cred_expire=5
StateSaveLocation={folder}
SlurmdSpoolDir=/run/munge/spool
SlurmctldPidFile=/run/munge/slurmctld.pid
SlurmdPidFile=/run/munge/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%h.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdTimeout={dead}
KillWait=30
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=host[1-{count}] CPUs=64 RealMemory=1000 Gres=gpu:8
PartitionName=all Nodes=ALL Default=YES
"""
PREPARE = """
set -e
mkdir -p /run/munge && mount -t tmpfs -o mode=755 tmpfs /run/munge && mkdir /run/munge/spool
mount -t tmpfs tmpfs /sys/fs/cgroup
cd /run/munge
munged --force --key-file={folder}/munge.key --socket=$PWD/socket --pid-file=$PWD/pid --log-file=$PWD/log --seed-file=$PWD/seed
"""


class Slurm:
    """Running on all hosts; `folder` has its configuration, its logs and its jobs' output."""

    def __init__(self, hosts: Hosts, folder: Path, count: int):
        if absent := [package for tool, package in TOOLS.items() if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")]:
            pytest.skip(f"not installed: {', '.join(absent)}")
        self.hosts, self.folder, self._variables = hosts, folder, {"SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, count=count, dead=DEAD))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        for k in range(1, count + 1):
            self._prepare(k)
        self._on(1, "slurmctld")
        for k in range(1, count + 1):
            self._on(k, "slurmd")
        self.wait(lambda: self._on(1, "sinfo", "--noheader", "--format=%D %t").stdout.split() == [str(count), "idle"], "idle hosts", 60)

    def boot(self, k: int) -> None:
        """A host that was killed is there again, and its daemon."""
        self.hosts.do("boot", k)
        self._prepare(k)
        self._on(k, "slurmd")

    def submit(self, *words, **variables: str) -> int:
        """Number of the job that `sbatch` with these words makes; its output is `job-NUMBER.txt` in `folder`."""
        said = self._on(1, "sbatch", "--parsable", f"--output={self.folder}/job-%j.txt", *words, **VARIABLES, **variables).stdout
        return int(said)

    def job(self, number: int) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ExitCode, Reason."""
        return dict(re.findall(r"(\w+)=(\S*)", self._on(1, "scontrol", "show", "job", number).stdout))

    def cancel(self, number: int) -> None:
        """Be it there or not."""
        subprocess.run(self.hosts.command(1, "scancel", number), env=os.environ | self._variables, timeout=30, check=False)

    def story(self) -> str:
        """The ends of all that was written."""
        written = (path for path in self.folder.iterdir() if path.suffix in (".txt", ".log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in written)

    def wait(self, there: Callable[[], bool], what: str, seconds: float = 240) -> None:
        """Until it is so."""
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}\n{self.story()}"
            time.sleep(0.2)

    def _prepare(self, k: int) -> None:
        self._on(k, "bash", "-c", PREPARE.format(folder=self.folder))

    def _on(self, k: int, *words, **variables: str) -> subprocess.CompletedProcess:
        """A command of Slurm's that comes back at once. Daemons keep what they inherit, so their output goes to no pipe."""
        command, told = self.hosts.command(k, *words), self.folder / "told"
        environment = os.environ | ENVIRONMENT | self._variables | variables
        environment["PATH"] += ":/usr/sbin:/sbin"
        with told.open("w") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=60, **streams)
        return succeeded(subprocess.CompletedProcess(command, done.returncode, told.read_text(), ""))
