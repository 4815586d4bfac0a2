"""How long a step takes."""

import time


class Clock:
    """Seconds a step, without what evaluations and checkpoints take."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measure from now on, after `step`."""
        self._step, self._since = step, time.perf_counter()

    def lap(self, step: int) -> float:
        """Mean seconds of the steps since the last lap or restart."""
        seconds = (time.perf_counter() - self._since) / (step - self._step)
        self.restart(step)
        return seconds
