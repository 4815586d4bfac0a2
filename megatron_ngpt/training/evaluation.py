"""What a run evaluates on its way: the loss on each validation dataset, a sample of what the model writes, and tasks of lm-eval."""

import math
from collections.abc import Callable
from pathlib import Path

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.batches import Opened, Rows, validation_batches
from megatron_ngpt.errors import TaskError
from megatron_ngpt.inference.continuation import Continuation
from megatron_ngpt.inference.generate import continue_batch
from megatron_ngpt.inference.sampling import Sampling
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.training.engine import Engine

PROMPT_TOKENS = 16  # of a sample: how the first validation dataset begins
SAMPLE_TOKENS = 64
SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=0)  # the same draws every time, so that samples differ by the model alone
SEAM = "▮"  # between the prompt and what the model wrote
TASK_BATCH = 8  # requests that go through the model together


class Evaluation:
    """A run's evaluations, which nothing of its training depends on.

    Attributes:
        broken: why the last one is none, if its loss is not finite.

    Raises:
        ConfigError: lm-eval has no such task, one asks for what is not done here, or its own code fails.
        DataError: a task's data is neither on this machine nor within reach.
    """

    def __init__(self, recipe: Recipe, data: Opened):
        self.recipe, self.broken = recipe, None
        self._sources = validation_batches(recipe, data) if recipe.training.eval_every else {}
        self._tasks = find_tasks(recipe) if recipe.training.eval_every and recipe.training.eval_tasks else None
        self._live, self._tokenizer, self._tasks_fail = None, data.tokenizer, False

    def run(self, step: int, engine: Engine, rows: Callable[..., Rows], between: Callable[[], None], monitor: Monitor) -> None:
        """Tell all of it (collective).

        Args:
            rows: this rank's rows of a source's global batch.
            between: called between two batches, and may raise to end the evaluation, of which nothing is told.
        """
        losses = {name: self._loss(engine, lambda number, source=source: rows(source, number), between)
                  for name, source in self._sources.items()}  # fmt: skip
        mean = sum(losses.values()) / len(losses)
        monitor.scalars(step, {"valid_loss": mean, "valid": losses})
        self.broken = None if math.isfinite(mean) else f"the validation loss is {mean}"
        if self.broken:
            return  # the model writes nothing
        self._live = self._live or engine.live(self._tokenizer)
        monitor.text(step, "sample", self._sample())
        if self._tasks:
            self._tell_tasks(step, monitor)

    def _loss(self, engine: Engine, rows: Callable[[int], Rows], between: Callable[[], None]) -> float:
        total = 0.0
        for number in range(1, self.recipe.training.eval_batches + 1):
            between()
            total += engine.evaluate(rows(number))
        return total / self.recipe.training.eval_batches

    def _sample(self) -> str:
        """How the first validation dataset begins, and what the model writes after it (collective)."""
        tokenizer = self._tokenizer
        read = next(iter(self._sources.values())).rows(1, 0, 1).tokens[0, :PROMPT_TOKENS].tolist()
        ends = [place for place, token in enumerate(read) if token == tokenizer.eos_id and place]
        row = Continuation(tokenizer, tokenizer.decode(read[: ends[0] if ends else None]))
        prompt = tokenizer.decode(row.given)
        continue_batch(self._live, [row], SAMPLE_TOKENS, SAMPLING, tokenizer.size)
        return f"{prompt}{SEAM}{row.finish()}"

    def _tell_tasks(self, step: int, monitor: Monitor) -> None:
        """The results of the tasks (collective). One that fails costs them, and not the run; that is told once, until all go well again."""
        from megatron_ngpt.inference.tasks import numbers

        try:
            found = self._tasks.evaluate(self._live, self.recipe.training.eval_tasks_limit, TASK_BATCH, errors=False)
        except TaskError as error:
            if not self._tasks_fail:
                monitor.message(f"warning: step {step}: {error}; no results of training.eval_tasks, the run goes on; traceback in logs/")
            self._tasks_fail = True
            return
        self._tasks_fail = False
        monitor.scalars(step, {"tasks": numbers(found) if found else {}})


def find_tasks(recipe: Recipe):
    """lm-eval's tasks, with their data and rehearsed, before anything depends on them (collective)."""
    from megatron_ngpt.inference.tasks import Tasks

    path = recipe.training.eval_tasks_path
    tasks = Tasks(recipe.training.eval_tasks, Path(path) if path else None, "training.eval_tasks =", "training.eval_tasks_path")
    tasks.rehearse(recipe.training.eval_tasks_limit)
    return tasks
