"""A clean stop: a signal to any rank is remembered, and all ranks agree on the step after which they stop."""

import signal

import torch
import torch.distributed as dist


class StopRequest:
    """SIGTERM (schedulers, `kill`) and SIGINT (Ctrl-C) ask for a stop after the current step; a second SIGINT is not waited for."""

    def __init__(self):
        self._asked = False
        self._group = dist.new_group(backend="gloo")  # hosts among themselves: no device is waited for
        signal.signal(signal.SIGTERM, self._remember)
        signal.signal(signal.SIGINT, self._remember)

    def _remember(self, number: int, _frame) -> None:
        self._asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop (collective over the world: the same answer, at the same step, on every rank)."""
        asked = torch.tensor(float(self._asked))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return bool(asked)
