"""The scripts that start a run again, with stand-ins for the launchers: what they start, how often, and what they end with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.corpus import REPOSITORY

SCRIPTS = ("multinode.sh", "torchrun.sh", "slurm.sbatch")


class Stage:
    """A directory with stand-ins on the PATH; each writes down how it was called."""

    def __init__(self, folder: Path, recipe: Path):
        self.folder, self.recipe = folder, recipe
        (folder / "bin").mkdir()
        (folder / "launch").symlink_to(REPOSITORY / "launch")
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "activate").write_text("")
        (folder / "hostfile").write_text("host1 slots=1\nhost2 slots=1\n")

    def stand_in(self, name: str, body: str) -> None:
        """A command of this name that notes its words and NGPT_RESTART, then does `body`."""
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} ${{NGPT_RESTART:-}} $*" >> {self.folder}/calls\n{body}\n')
        path.chmod(0o755)

    def start(self, *words: str, **variables: str) -> subprocess.Popen:
        python = Path(sys.executable).parent
        environment = os.environ | {"PATH": f"{self.folder / 'bin'}:{python}:{os.environ['PATH']}"} | variables
        command = ["bash", *words, str(self.recipe), f"--training.output={self.folder / 'run'}"]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []


@pytest.fixture
def stage(good_recipe, tmp_path) -> Stage:
    return Stage(tmp_path, good_recipe)


LOOP = ("launch/multinode.sh", "--no_preflight", "--pause", "0", "--restarts", "2", "hostfile")


def test_scripts_teach_and_are_bash():
    for name in SCRIPTS:
        path = str(REPOSITORY / "launch" / name)
        assert subprocess.run(["bash", "-n", path]).returncode == 0
        told = subprocess.run(["bash", path, "--help"], capture_output=True, text=True, timeout=60)
        assert told.returncode == 0 and f"launch/{name}" in told.stdout and "RECIPE" in told.stdout.upper()


@pytest.mark.parametrize("status", [0, 2, 75])
def test_the_loop_ends_with_what_is_final(stage, status):
    stage.stand_in("deepspeed", f"exit {status}")
    assert stage.start(*LOOP).wait(120) == status
    assert len(stage.calls()) == 1 and "--hostfile hostfile --force_multi --launcher pdsh" in stage.calls()[0]


def test_the_loop_counts_restarts_without_a_new_checkpoint(stage):
    """Two in vain, a checkpoint, then three in vain: the third is one too many."""
    saves = f"[ $NGPT_RESTART != 2 ] || mkdir -p {stage.folder}/run/checkpoints/step-00000010"
    stage.stand_in("deepspeed", f"grep -q NGPT_RESTART=$NGPT_RESTART $DS_ENV_FILE || exit 2; {saves}; exit 7")
    process = stage.start(*LOOP)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 7 and "2 restarts without a new checkpoint" in told.splitlines()[-1]
    assert [call.split()[1] for call in stage.calls()] == ["0", "1", "2", "3", "4", "5"]


def test_a_signal_to_the_loop_reaches_the_launcher_and_ends_both(stage):
    stage.stand_in("deepspeed", f"trap 'echo stopped >> {stage.folder}/calls; exit 1' TERM; while true; do sleep 0.1; done")
    process = stage.start(*LOOP)
    until = time.monotonic() + 60
    while not stage.calls() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75 and stage.calls()[-1] == "stopped" and len(stage.calls()) == 2


OWNER = """
import sys, time
from pathlib import Path
from megatron_ngpt.checkpoint.ownership import claim
run = claim(Path(sys.argv[1]), "job")
Path(sys.argv[1], "owned").touch()
while not Path(sys.argv[1], "told").exists():
    time.sleep(0.05)
time.sleep(1)
Path(sys.argv[1], "saved").touch()
run.release()
"""


@pytest.mark.parametrize(("how", "status", "starts"), [("SIGTERM to the loop", 75, 1), ("SIGKILL of deepspeed", 0, 2), ("of pdsh", 0, 2)])
def test_the_loop_waits_until_ranks_that_outlive_their_launcher_have_saved(stage, how, status, starts):
    """The stand-in's rank is told to stop by what is left of the launcher, or left to itself; a second start finds nothing to do."""
    run = stage.folder / "run"
    (stage.folder / "owner.py").write_text(OWNER)
    rank = f"PYTHONPATH={REPOSITORY} setsid python {stage.folder}/owner.py {run} & until [ -e {run}/owned ]; do sleep 0.1; done"
    pdsh = f"trap 'touch {run}/told; exit 1' TERM; while true; do sleep 0.1; done"
    body = {
        "SIGTERM to the loop": f"touch {stage.folder}/ready; {pdsh}",
        "SIGKILL of deepspeed": f"({pdsh}) & sleep 1; kill -KILL $$",
        "of pdsh": "exit 0",
    }
    stage.stand_in("deepspeed", f"[ ! -e {run}/saved ] || exit 0; {rank}; {body[how]}")
    process = stage.start(*LOOP)
    if status:
        until = time.monotonic() + 60
        while not (stage.folder / "ready").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    if how == "of pdsh":
        assert "is still used by" in process.stderr.readline()
        (run / "told").touch()
    assert process.wait(120) == status and (run / "saved").exists() and len(stage.calls()) == starts


ENDS = [(0, 0, False), (2, 0, False), (75, 0, True), (75, 3, True), (1, 2, True), (1, 3, False)]


@pytest.mark.parametrize(("status", "restart", "requeued"), ENDS)
def test_slurm_requeues_what_can_go_on(stage, status, restart, requeued):
    stage.stand_in("srun", f"exit {status}")
    stage.stand_in("scontrol", "")
    job = {"SLURM_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": str(restart)}
    assert stage.start("launch/slurm.sbatch", **job).wait(120) == status
    assert [call for call in stage.calls() if call.startswith("scontrol")] == ([f"scontrol {restart} requeue 41"] if requeued else [])


def test_slurm_requeues_what_it_was_asked_to_stop_however_it_ended(stage):
    """Ranks that the signal met while they were starting end by it, and leave no checkpoint."""
    stage.stand_in("srun", f"trap 'exit 143' TERM; touch {stage.folder}/ready; while true; do sleep 0.1; done")
    stage.stand_in("scancel", "exit 1")
    stage.stand_in("scontrol", "")
    job = {"SLURM_JOB_ID": "41", "SLURM_CPUS_PER_TASK": "1", "SLURM_RESTART_COUNT": "4"}
    process, until = stage.start("launch/slurm.sbatch", **job), time.monotonic() + 60
    while not (stage.folder / "ready").exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143 and stage.calls()[-1] == "scontrol 4 requeue 41"
