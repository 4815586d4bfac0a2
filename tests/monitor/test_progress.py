"""What a person sees, and nobody any more."""

import os

from megatron_ngpt.monitor.logs import configure_logging
from megatron_ngpt.monitor.progress import ProgressView

VALUES = {"loss": 1.0, "tokens_per_second": 1.0, "tflops_per_second": 1.0}


def test_a_pipe_whose_reader_is_gone_ends_nothing(tmp_path):
    """As when ssh is killed: rich by itself ends the process, and moves standard output away."""
    reading, writing = os.pipe()
    before = os.dup(1)
    os.dup2(writing, 1)
    os.close(writing)
    try:
        with configure_logging(tmp_path, 0) as console:
            view, log = ProgressView(9, 0, console), os.fstat(1)
            view.update(1, VALUES)
            assert os.read(reading, 100).startswith(b"step 1/9 \xc2\xb7 loss 1.0000")
            os.close(reading)
            view.message("nobody reads this")
            view.update(9, VALUES)
            view.close()
            assert os.fstat(1) == log
    finally:
        os.dup2(before, 1)
