"""The learning rate as a pure function of the step: nothing to save, nothing to restore on resume."""

import math

from megatron_ngpt.config.recipe import Optimizer, Recipe, Schedule


def learning_rate(schedule: Schedule, optimizer: Optimizer, steps: int, step: int) -> float:
    """Rate that the update of `step` (1-based) uses in a run of `steps` steps.

    Warm-up rises linearly and reaches `optimizer.lr` at step `warmup_steps`. After it, with the decay's end E:

    * cosine: half a cosine from the end of the warm-up to E = `decay_steps`, `min_lr` from there on; a run may stop before E;
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


def last_rate(recipe: Recipe) -> str | None:
    """What is worth knowing about the rate at the run's end before it starts; None where it ends as schedules do."""
    schedule, steps = recipe.schedule, recipe.training.steps
    rate = learning_rate(schedule, recipe.optimizer, steps, steps)
    if schedule.kind == "cosine" and (schedule.decay_steps or 0) > steps:
        return f"the learning rate at the last step, {steps} of a schedule of {schedule.decay_steps}, will be {rate:.4g}"
    if schedule.kind == "wsd" and (schedule.decay_steps or 0) > steps:
        return (
            f"the learning rate falls over the whole run after the warm-up (schedule.decay_steps = {schedule.decay_steps} is more than "
            f"its {steps} steps), to {rate:.4g}"
        )
    if rate == 0 and steps == 1:
        return "the learning rate of the only step is 0, so that it changes nothing (schedule.kind: constant keeps optimizer.lr)"
    return None
