"""The learning rate as a pure function of the step: nothing to save, nothing to restore on resume."""

import math

from megatron_ngpt.config.recipe import Optimizer, Schedule


def learning_rate(schedule: Schedule, optimizer: Optimizer, steps: int, step: int) -> float:
    """Rate that the update of `step` (1-based) uses in a run of `steps` steps.

    Warm-up rises linearly and reaches `optimizer.lr` at step `warmup_steps`. After it, with the decay's end E:

    * cosine: half a cosine from the end of the warm-up to E = `decay_steps`, `min_lr` from there on;
    * wsd (warm-up, stable, decay): `optimizer.lr`, then a straight line to `min_lr` at E = `steps`. The line takes the last
      `decay_steps` steps, or all that follow the warm-up if that is fewer, so that `decay_steps: null` (the whole run)
      is a linear decay without a stable phase;
    * constant: `optimizer.lr`.
    """
    warmup, peak = schedule.warmup_steps, optimizer.lr
    if step <= warmup:
        return peak * step / warmup
    if schedule.kind == "constant":
        return peak
    length = schedule.decay_steps or steps
    start, end = (warmup, length) if schedule.kind == "cosine" else (max(warmup, steps - length), steps)
    if step <= start < end:
        return peak
    if step >= end:
        return schedule.min_lr
    gone = (step - start) / (end - start)
    left = (1 + math.cos(math.pi * gone)) / 2 if schedule.kind == "cosine" else 1 - gone
    return schedule.min_lr + (peak - schedule.min_lr) * left
