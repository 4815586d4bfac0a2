"""What a launcher's ranks do before they train, on whatever host: a folder on PYTHONPATH, which launchers pass on, has a sitecustomize that
calls a function of this module with the run directory."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.distributed.corpus import REPOSITORY
from tests.faults import poison

SITE = """
import sys
if any(word.endswith("launch/pretrain.py") for word in sys.orig_argv):
    from pathlib import Path
    import megatron_ngpt.training.run as module
    from tests.multinode.befall import {name}
    run = module.run
    def befallen(ready):
        {name}(Path(ready.recipe.training.output))
        return run(ready)
    module.run = befallen
"""
UNREADABLE = "step-00000010"


def environment(before: Callable[[Path], None], folder: Path) -> dict[str, str]:
    """The variable with which a launcher's ranks call `before`, through a file in `folder`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE.format(name=before.__name__))
    return {"PYTHONPATH": f"{folder}:{REPOSITORY}"}


def poisoned(output: Path) -> None:
    """By the run's name, as it is on one host."""
    poison.before(output)


def flipped_once(output: Path) -> None:
    """A bit of the last rank's masters, in the first start alone."""
    if os.environ["NGPT_RESTART"] == "0":
        poison.before(output)


def reader_crashes(_: Path) -> None:
    """The last rank dies of one checkpoint, without a word."""
    from megatron_ngpt.training import resume

    load = resume.load

    def dying(path, *arguments):
        if path.name == UNREADABLE and os.environ["RANK"] != "0":
            os.kill(os.getpid(), signal.SIGSEGV)
        return load(path, *arguments)

    resume.load = dying


def unhurried(_: Path) -> None:
    """Steps take a quarter of a second, so that hosts can come and go between them."""
    from megatron_ngpt.training.stop import StopRequest

    begin = StopRequest.begin

    def slow(self, step):
        time.sleep(0.25)
        begin(self, step)

    StopRequest.begin = slow
