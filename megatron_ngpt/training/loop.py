"""The training loop: batches in, updates, evaluation, checkpoints, a clean stop; what it learns goes to the monitor."""

import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TextIO

import torch

from megatron_ngpt.checkpoint.exported import TOKENIZER
from megatron_ngpt.checkpoint.ownership import OwnershipLostError
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.config.deepspeed_json import engine_config
from megatron_ngpt.config.grid import given_sizes
from megatron_ngpt.errors import NgptError, TrainingError
from megatron_ngpt.monitor.clock import Clock
from megatron_ngpt.monitor.monitor import Monitor
from megatron_ngpt.monitor.profiles import Profiles
from megatron_ngpt.parallel.grid import make_grid
from megatron_ngpt.parallel.together import on_first_rank
from megatron_ngpt.training import heading
from megatron_ngpt.training.ahead import RowReader
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.evaluation import Evaluation
from megatron_ngpt.training.line import TrainingLine
from megatron_ngpt.training.preflight import Ready, space_warnings, summary
from megatron_ngpt.training.record import state_of
from megatron_ngpt.training.resume import Beginning
from megatron_ngpt.training.saves import Saves
from megatron_ngpt.training.schedule import learning_rate
from megatron_ngpt.training.stop import Stopped, StopRequest
from megatron_ngpt.training.trouble import Trouble, VetoedInARow
from megatron_ngpt.training.update import StepResult
from megatron_ngpt.watchdog.rank import NOBODY, Unwatched
from megatron_ngpt.watchdog.sections import EVALUATION, LAST_SAVE, PHASES, SAVE


class Trainer:
    """One run on this rank, from step 0 or its newest checkpoint to the last step."""

    def __init__(self, ready: Ready, device: torch.device, console: TextIO, watch: Unwatched = NOBODY):
        self.ready, self.recipe, self.vocabulary = ready, ready.recipe, ready.vocabulary
        self.output = Path(self.recipe.training.output)
        self.grid = make_grid(**given_sizes(self.recipe.parallel))
        heading.tell(self.grid, device, self.recipe)
        self.ownership, self.console, self.monitor = ready.ownership, console, None
        self.watch, self.stop = watch, StopRequest(self._say, ready.ownership, watch)
        self.tokenizer = ready.data.tokenizer
        self.evaluation = Evaluation(self.recipe, ready.data)
        self.store = CheckpointStore(self.output, self.recipe.checkpoint.keep, self.recipe.checkpoint.keep_every, self._check_owned)
        self.beginning = Beginning(ready, self.store)
        config = engine_config(self.recipe, ready.deepspeed, self.grid.readers.size)
        self.engine = Engine(self.recipe, self.vocabulary, config, self.grid, device)
        self.step = self.begun = self.beginning.fill(self.engine)
        self.status = 0
        on_first_rank(self._check_owned, f"{self.output} could not be written")
        self.monitor = Monitor(self.recipe, self.step, self.grid.world.rank, console)
        if self.step < self.recipe.training.steps:
            self.beginning.settle()
            self.monitor.event("start", self.step, **self.beginning.told())
        if self.recipe.checkpoint.every:
            self.store.prepare(self.engine.shards)
        self.rows = RowReader(self.grid, self.recipe.training.steps, self.recipe.data.document_boundaries == "mask")
        self._take_up()
        self.saves = Saves(self.store, self.monitor, self.step)
        self.profiles = Profiles(self.output / "profiles", self.recipe.training.profile, self.grid.world.rank, device, self.monitor.message)
        for line in (summary(ready), *self.beginning.notes, *space_warnings(ready)):
            self.monitor.message(line)

    def train(self) -> int:
        """Train to the last step, or until asked to stop; returns the exit status.

        Raises:
            TrainingError: too many updates in a row were vetoed, and there is nothing to roll back to, or it did not help.
            CheckpointError: the last checkpoint could not be written; a failure of one before it is a warning.
            NgptError: another run has the run directory; or the ranks were torn apart before they could stop as they were asked to.
        """
        try:
            self._train()
            return self.status
        except NgptError:
            raise
        except Exception as error:
            if self.stop.asked is None:
                raise
            told = self.saves.last_good()
            raise NgptError(f"{self.stop.asked}: ended before the checkpoint of step {self.step} was complete; {told}") from error
        finally:
            self.watch.enter(LAST_SAVE)
            self.profiles.close(self.step)
            self.saves.wait()  # a save under way is worth having, whatever ended the run
            if (error := sys.exc_info()[1]) and not isinstance(error, OwnershipLostError):
                self.monitor.event("end", self.step, outcome="failed", error=str(error) or type(error).__name__)
            self.monitor.close()
            self.stop.close()

    def _train(self) -> None:
        training = self.recipe.training
        if self.step >= training.steps:
            self.monitor.message(f"nothing to do: trained to step {self.step} already (training.steps = {training.steps})")
            return
        clock = self.engine.clock
        clock.restart(self.step)
        clock.tell = lambda phase: self.watch.enter(PHASES[phase])
        while self.step < training.steps:
            try:
                if self.next_step(clock):
                    return
            except VetoedInARow as row:
                self._roll_back(row)
        self.saves.complete()
        if broken := self.evaluation.broken:
            raise TrainingError(f"step {self.step}: {broken}; the checkpoint of this step is written, and its values are finite")
        self.monitor.event("end", self.step, outcome="finished")
        self.monitor.message(f"trained to step {self.step}; checkpoint of step {self.step} in {self.store.catalogue.directory}")

    def next_step(self, clock: Clock) -> bool:
        """The next step, and what follows it; returns whether the run has stopped as it was asked to. Raises VetoedInARow."""
        training = self.recipe.training
        self.step += 1
        self.profiles.begin(self.step)
        logs = self.line.due(self.step)
        lr = learning_rate(self.recipe.schedule, self.recipe.optimizer, training.steps, self.step)
        try:
            with clock.measured(self.step) if logs else nullcontext():
                stops = self._update(lr, measure=logs)
        except Stopped:
            self.step -= 1
            self._leave(f"step {self.step + 1} was cut short, ")
            return True
        self.watch.stepped()
        if logs:
            self.line.tell(self.step, self._look(), lr)
        if self.profiles.end(self.step, self.stop.profile_asked_by()):
            clock.restart(self.step)
        last = self.step == training.steps
        if training.eval_every and (self.step % training.eval_every == 0 or last) and not stops:
            stops = self._evaluate()
            clock.restart(self.step)
        if stops and not last:
            self._leave()
            return True
        if last or (self.recipe.checkpoint.every and self.step % self.recipe.checkpoint.every == 0):
            self._look()
            if last or not self.trouble.in_a_row:  # what led to a row of vetoes may be in the weights
                self._save(final=last)
            clock.restart(self.step)
        self.saves.tell_finished()
        return False

    def _update(self, lr: float, measure: bool) -> bool:
        """The update of this step; returns whether the ranks have agreed to stop after it. Raises Stopped where they did so within it."""
        with self.engine.clock.within("data"):
            rows = self.rows.next(self.train_data, self.step)
        self.stop.begin(self.step)
        self.trouble.unread.append(self.engine.step(rows, lr, measure, self.stop.between))
        return self.stop.agreed()

    def _leave(self, cut: str = "") -> None:
        """Stop as asked, with a checkpoint of the last whole step; `cut` says that one was not finished."""
        self.watch.enter(LAST_SAVE)
        try:
            self._look(repeat=False)  # the gradients of a step that was cut short are still there
        except VetoedInARow as row:
            self._roll_back(row)
        self.status = self.stop.status
        self.monitor.event("stop", self.step, asked=self.stop.asked)
        self.saves.wait()
        if self.step > self.saves.newest:
            self._save(final=True)
            self.saves.complete()
        self.monitor.event("end", self.step, outcome="stopped")
        if self.step == self.begun:
            self.monitor.message(f"asked to stop: {cut}no step was complete, and there is nothing to save")
            return
        again = "with --checkpoint.resume=auto it continues" if self.recipe.checkpoint.resume == "never" else "the same command continues"
        self.monitor.message(f"asked to stop: {cut}checkpoint of step {self.step} written; {again} from it")

    def _look(self, repeat: bool = True) -> StepResult | None:
        """What the newest update learnt, where nobody has looked since; what was vetoed is computed again, unless told not to `repeat`.

        Raises:
            VetoedInARow: too many updates in a row were vetoed.
        """
        results = self.trouble.look(self.step, self.phases[-1], lambda step: self.rows.now(self.train_data, step) if repeat else None)
        self.line.saw(results)
        return results[-1] if results else None

    def _roll_back(self, row: VetoedInARow) -> None:
        """To the last good checkpoint, from where the samples of the row are skipped. Raises TrainingError: there is none, or it did not
        help before."""
        self.watch.enter(SAVE)
        self.saves.wait()
        skipped = self.beginning.roll_back(self.engine, row)
        self.step = self.saves.newest = self.beginning.step
        self.monitor.roll_back(self.step)
        self._take_up()
        self.monitor.event("rollback", self.step, checkpoint=str(self.beginning.found), vetoed=[row.first, row.last], skipped=skipped)
        self.monitor.message(f"{row}: rolled back to {self.beginning.found}; batches {skipped} are skipped from now on")
        self.engine.observer.leave()
        self.engine.clock.restart(self.step)

    def _take_up(self) -> None:
        """What follows from the checkpoint that the run is at."""
        self.phases, self.trouble = self.beginning.phases, Trouble(self.recipe, self.engine, self.monitor, self.beginning.state)
        self.train_data = self.ready.batches.after(self.phases[-1].after, self.phases[-1].skipped)
        self.line = TrainingLine(self.ready, self.engine, self.train_data, self.phases, self.monitor, self.trouble.vetoed, self.watch)

    def _evaluate(self) -> bool:
        """Tell what is evaluated; returns whether the ranks have agreed to stop on the way, and nothing is told."""
        self.watch.enter(EVALUATION)
        try:
            self.evaluation.run(self.step, self.engine, self.rows.now, self.stop.between, self.monitor)
        except Stopped:
            return True
        return False

    def _check_owned(self) -> None:
        """Rank 0, before it writes or removes anything. Raises OwnershipLostError."""
        if self.ownership:
            self.ownership.check()

    def _say(self, line: str) -> None:
        """Tell the person a line, from any thread and before there is a monitor."""
        if self.monitor:
            self.monitor.message(line)
        elif self.grid.world.first:
            with suppress(OSError):  # a terminal that has gone away
                print(line, file=self.console, flush=True)

    def _save(self, final: bool) -> None:
        """Begin a checkpoint of this step; one still under way is waited for first. The `final` one waits for room on a full disk."""
        self.watch.enter(LAST_SAVE if final else SAVE)
        self.saves.wait()
        self.engine.check_copies(self.step)
        self.monitor.sync()
        state, attached, told = {}, {}, self.trouble.state()
        if self.grid.world.first:
            attached = {TOKENIZER: self.tokenizer.raw}
            state = state_of(self.recipe, self.step, self.vocabulary, self.train_data.fingerprint, self.beginning.code, self.phases, told)
        self.store.save(self.step, self.engine.shards, self.engine.base, state, attached, self.monitor.message if final else None)
