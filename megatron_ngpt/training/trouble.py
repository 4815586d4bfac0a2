"""What becomes of updates that were vetoed: each is told with where its samples are, and so many in a row end in a rollback.

Every rank reads the same verdicts in the same order, whenever it looks, and so decides the same. A row that is found late, since steps
between it and the look were not logged, has the same consequence: what was trained after it goes with the rollback.
"""

import math
import shlex
from collections.abc import Callable
from pathlib import Path

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.batches import Rows
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.history import STEPS
from megatron_ngpt.training.phase import Phase
from megatron_ngpt.training.update import Outcome, StepResult, read

ROLLBACKS = 3  # to one checkpoint: more of the same would not help
REMEDY = "A lower optimizer.lr or optimizer.clip may help"


class VetoedInARow(Exception):
    """As many steps in a row as the recipe's `training.skip.in_a_row` were vetoed, `first` to `last`."""

    def __init__(self, first: int, last: int, why: str):
        self.first, self.last, self.why = first, last, why
        super().__init__(f"steps {first} to {last} were vetoed")


class Trouble:
    """Looks at the updates of a run that goes on from a checkpoint's `state` (empty: from step 0).

    Attributes:
        unread: what updates learnt that nobody has looked at yet.
        vetoed: steps of the run that moved nothing.
        in_a_row: how many of them are its last ones.
    """

    def __init__(self, recipe: Recipe, engine: Engine, monitor: Monitor, state: dict):
        self._recipe, self._engine, self._monitor = recipe, engine, monitor
        self.unread: list[Outcome] = []
        self.vetoed, self.in_a_row = state.get("vetoed", 0), state.get("vetoed_in_a_row", 0)

    def look(self, step: int, phase: Phase, rows: Callable[[int], Rows | None]) -> list[StepResult]:
        """What the updates up to `step` learnt that nobody has looked at yet: the one time that a step waits for the device (collective).

        Args:
            phase: that the step lies in.
            rows: this rank's rows of a step, to compute it again; None: it is not.

        Raises:
            VetoedInARow: with the first of these updates that fills a row.
        """
        results = read(self.unread) if self.unread else []
        self.unread.clear()
        for number, result in enumerate(results):
            at = step - len(results) + 1 + number
            self.in_a_row = self.in_a_row + 1 if result.vetoed else 0
            if result.vetoed:
                self.vetoed += 1
                same_weights = all(later.vetoed for later in results[number:])
                own = rows(at) if same_weights else None
                self._tell(at, phase.batch_of(at), result, None if own is None else self._repeated(result, own))
            if self.in_a_row == self._recipe.training.skip.in_a_row:
                raise VetoedInARow(at - self.in_a_row + 1, at, self._why(result))
        return results

    def state(self) -> dict:
        """What a checkpoint remembers of it; waits for the device."""
        return {"vetoed": self.vetoed, "vetoed_in_a_row": self.in_a_row, "history": self._engine.history.state()}

    def _tell(self, step: int, batch: int, result: StepResult, repeated: str | None) -> None:
        recipe = shlex.quote(str(Path(self._recipe.training.output) / "recipe.yaml"))
        command = f"python -m data_tools show-batch {recipe} --batch {batch} --decode"
        why, rows = self._why(result), [0, self._recipe.training.global_batch]
        self._monitor.event("veto", step, why=why, batch=batch, rows=rows, repeated=repeated, command=command)
        again = f"computed again from the same rows it {repeated}; " if repeated else ""
        self._monitor.message(f"step {step}: {why}: vetoed, no weight was moved; {again}its samples: {command}")

    def _why(self, result: StepResult) -> str:
        for name, value in (("loss", result.loss), ("gradient norm", result.grad_norm)):
            if not math.isfinite(value):
                return f"{name} is {value}"
        deviations = f"{self._recipe.training.skip.deviations:g} deviations above the last {STEPS}"
        return f"loss {result.loss:.6g}, gradient norm {result.grad_norm:.6g}: one is {deviations}"

    def _repeated(self, result: StepResult, rows: Rows) -> str:
        """Whether the same weights and rows give the same numbers again (collective): what does not repeat is the machine's fault."""
        again = self._engine.repeat(rows)
        if all(a == b or (a != a and b != b) for a, b in ((again.loss, result.loss), (again.grad_norm, result.grad_norm))):
            return "repeats bit for bit"
        numbers = f"loss {again.loss:.9g}, gradient norm {again.grad_norm:.9g}"
        return f"repeats with other numbers ({numbers})" if again.vetoed else f"does not repeat ({numbers}): a fault of the machine"
