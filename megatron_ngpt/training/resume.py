"""How a run begins: at a checkpoint of its own or of another, in whatever layout that was saved, at an exported model, or from its seed."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from megatron_ngpt.checkpoint.dcp import load
from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.checkpoint.reading import Reading
from megatron_ngpt.checkpoint.seal import read_state
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.config.load import dump_recipe
from megatron_ngpt.config.place import hosts, read_place
from megatron_ngpt.errors import DamagedError, NgptError, TrainingError
from megatron_ngpt.parallel.together import from_first_rank, leads, on_first_rank
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.history import NOTHING
from megatron_ngpt.training.phase import Phase, phases_of
from megatron_ngpt.training.preflight import Ready, summary
from megatron_ngpt.training.record import code_version, continued
from megatron_ngpt.training.trouble import REMEDY, ROLLBACKS, VetoedInARow

Found = tuple[Path | None, list[str], list[Phase]]
Find = Callable[[], Found]


class Beginning:
    """The checkpoint that a run continues from, found and judged before its engine is built (collective to construct).

    Attributes:
        found: the checkpoint's directory; None for a run that begins at step 0.
        notes: what to tell a person about it.
        phases: of the run, the one to come last.
        state: of the checkpoint, once it is read.
        code: the version of the project that runs; known to rank 0.
    """

    def __init__(self, ready: Ready, store: CheckpointStore):
        self._ready, self._recipe, self._store = ready, ready.recipe, store
        self.code = code_version() if leads() else ""
        self.state: dict = {}
        self._returns: Counter[int] = Counter()  # rollbacks to a checkpoint, by its step
        self._agree(self._find)

    @property
    def step(self) -> int:
        """That the checkpoint is of; 0 without one."""
        return self.state.get("step", 0)

    def fill(self, engine: Engine) -> int:
        """Masters (and moments) from the checkpoint, an exported model or the seed; returns the step they are of (collective).

        A checkpoint of the run directory that proves damaged, or ends who reads it, makes way for the one before it.
        """
        if self._load(engine, self._find):
            return self.step
        if self._recipe.checkpoint.initial:
            load_initial(Path(self._recipe.checkpoint.initial), engine.shards, engine.blueprint)
            engine.renormaliser.renormalise()
            engine.publish()
        else:
            engine.initialise()
        return 0

    def roll_back(self, engine: Engine, row: VetoedInARow) -> list[int]:
        """Masters and moments from the newest checkpoint that no vetoed step ends; returns the batches of the row's steps after it, which
        are skipped from now on (collective). `found`, `state` and `phases` are as after `fill`.

        Raises:
            TrainingError: there is no checkpoint, or rollbacks to it did not help before.
        """
        before = self.phases[-1]
        self._agree(self._find_before_vetoes)
        if not self._load(engine, self._find_before_vetoes):
            raise TrainingError(f"{row}: {row.why}; there is no checkpoint to roll back to. {REMEDY}, and checkpoint.every keeps one")
        self._returns[self.step] += 1
        if self._returns[self.step] > ROLLBACKS:
            raise TrainingError(f"{row}: {row.why}; {ROLLBACKS} rollbacks to {self.found} did not help. {REMEDY}")
        if self.phases[-1].after != before.after:
            return []  # one of an earlier phase, from which this one begins anew, with another order
        batches = [before.batch_of(step) for step in range(max(row.first, self.step + 1), row.last + 1)]
        self.phases = [*self.phases[:-1], before.without(batches)]
        return batches

    def _load(self, engine: Engine, find: Find) -> bool:
        """What the checkpoint at `found` holds, or one that `find` finds where that is damaged; False: there is none (collective)."""
        aside, reading = [], Reading(Path(self._recipe.training.output))
        while self.found:
            own = self.found.parent == self._store.catalogue.directory
            try:
                on_first_rank(lambda own=own: reading.begin(self.found) if own else None, f"{self.found} could not be read")
                self.state = load(self.found, engine.shards, engine.base)
                engine.publish()
                on_first_rank(reading.end, f"{self.found} could not be read")
                new_phase = self.phases[-1].after == self.state["step"]
                engine.history.load(NOTHING if new_phase else self.state["history"])
                self.notes = [*aside, *self.notes]
                return True
            except NgptError as error:
                on_first_rank(reading.end, f"{self.found} could not be read")
                if not isinstance(error, DamagedError) or not own:
                    raise
                on_first_rank(lambda: self._store.set_aside(self.found), f"{self.found} could not be put aside")
                aside.append(f"{error}; put aside")
                self._agree(find)
        return False

    def settle(self) -> None:
        """Make the run directory tidy, and put the recipe in it (collective)."""
        output = Path(self._recipe.training.output)

        def write() -> None:
            self._store.tidy()
            write_text(output / "recipe.yaml", dump_recipe(self._recipe))

        on_first_rank(write, f"{output} could not be written")

    def told(self) -> dict:
        """What `events.jsonl` has of this start."""
        found = None if self.found is None else str(self.found)
        who = hosts(os.environ, read_place(os.environ))
        return {"resumed_from": found, "code": self.code, "ranks": who, "layout": summary(self._ready), "notes": self.notes}

    def _agree(self, find: Find) -> None:
        """On the checkpoint that rank 0 finds, and what it has to tell about it (collective)."""
        self.found, self.notes, self.phases = from_first_rank(find, f"{self._recipe.training.output} could not be resumed")

    def _find(self) -> Found:
        self._store.check()
        self._store.catalogue.rescue()
        return continued(self._store.catalogue, self._recipe, self._ready.data, self._ready.batches.fingerprint)

    def _find_before_vetoes(self) -> Found:
        """The newest whose last step was not vetoed: what led to a row of vetoes may be in the others."""
        self._store.check()
        catalogue, resume = self._store.catalogue, self._recipe.checkpoint.resume
        complete, _ = catalogue.survey()
        if not complete:
            begun = catalogue.find("auto" if resume == "never" else resume)[0]
            if begun is None:
                return None, [], self.phases
            complete = [(begun, read_state(begun))]
        newest_first = complete[::-1]
        path, state = next(((path, state) for path, state in newest_first if not state["vetoed_in_a_row"]), newest_first[0])
        return path, [], phases_of(self._recipe, state)
