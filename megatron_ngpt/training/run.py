"""From a checked recipe to a finished run: the log file first, so that everything after it is told there, then the ranks, then training."""

import os
from pathlib import Path

from megatron_ngpt.monitor.logs import configure_logging
from megatron_ngpt.parallel.device import choose_device, start_process_group
from megatron_ngpt.training.preflight import Ready


def run(ready: Ready) -> int:
    """Train as the recipe says, on this rank; returns the exit status.

    Raises:
        NgptError: training could not go on; the message is one line for the user.
    """
    output = Path(ready.recipe.training.output)
    with configure_logging(output, int(os.environ.get("RANK", "0"))) as console:
        device = choose_device()  # before DeepSpeed is imported
        start_process_group(device, lambda line: print(line, file=console, flush=True))
        from megatron_ngpt.training.loop import Trainer

        status = Trainer(ready, device, console).train()
        import torch.distributed as dist

        dist.barrier()
        dist.destroy_process_group()
    return status
