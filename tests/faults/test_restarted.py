"""torchrun starts a run again whose worker was killed: the whole reads like the undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ngpt.monitor.events import read_events
from tests.distributed.corpus import REPOSITORY
from tests.distributed.layouts import zero
from tests.distributed.ranks import train
from tests.faults.runs import lines, options

KEYS = zero(2) | {"training.steps": 15}
# On rank 1 of the first attempt: killed in step 12, when the checkpoint of step 5 is long there.
RANK = """
import os, signal, sys
from megatron_ngpt.training.entry import main
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    from megatron_ngpt.training.stop import StopRequest
    begin = StopRequest.begin
    def kills(self, step):
        begin(self, step)
        if step == 12:
            os.kill(os.getpid(), signal.SIGKILL)
    StopRequest.begin = kills
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.heavy
def test_torchrun_starts_again_and_the_losses_are_those_of_an_undisturbed_run(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments = [str(corpus / "recipe.yaml"), *options(KEYS)]
    train(2, arguments, tmp_path / "undisturbed")
    script, output = tmp_path / "rank.py", tmp_path / "run"
    script.write_text(RANK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*launcher, str(script), *arguments, f"--training.output={output}"], capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines(output) == lines(tmp_path / "undisturbed")
    events = [event["event"] for event in read_events(output)]
    assert events.count("start") == 2 and events.count("watchdog") == 1, events
    told = [line for line in (done.stdout + done.stderr).splitlines() if f"its log: {output}/logs/rank-00001.log" in line]
    assert len(told) == 1 and told[0].startswith("rank 1 on "), told
    assert Path(output / "restarts.json").is_file()
