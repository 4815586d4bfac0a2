"""How a run begins: at a checkpoint of its own or of another, in whatever layout that was saved, at an exported model, or from its seed."""

import os
from pathlib import Path

from megatron_ngpt.checkpoint.dcp import load
from megatron_ngpt.checkpoint.files import write_text
from megatron_ngpt.checkpoint.initial import load_initial
from megatron_ngpt.checkpoint.store import CheckpointStore
from megatron_ngpt.config.load import dump_recipe
from megatron_ngpt.config.place import hosts, read_place
from megatron_ngpt.errors import DamagedError
from megatron_ngpt.parallel.together import from_first_rank, leads, on_first_rank
from megatron_ngpt.training.engine import Engine
from megatron_ngpt.training.phase import Phase
from megatron_ngpt.training.preflight import Ready, summary
from megatron_ngpt.training.record import code_version, continued


class Beginning:
    """The checkpoint that a run continues from, found and judged before its engine is built (collective to construct).

    Attributes:
        found: the checkpoint's directory; None for a run that begins at step 0.
        notes: what to tell a person about it.
        phases: of the run, the one to come last.
        code: the version of the project that runs; known to rank 0.
    """

    def __init__(self, ready: Ready, store: CheckpointStore):
        self._ready, self._recipe, self._store = ready, ready.recipe, store
        self.code = code_version() if leads() else ""
        self._agree()

    def fill(self, engine: Engine) -> int:
        """Masters (and moments) from the checkpoint, an exported model or the seed; returns the step they are of (collective).

        A checkpoint of the run directory that proves damaged makes way for the one before it.
        """
        aside = []
        while self.found:
            try:
                step = load(self.found, engine.shards, engine.base)["step"]
                engine.publish()
                self.notes = [*aside, *self.notes]
                return step
            except DamagedError as error:
                if self.found.parent != self._store.catalogue.directory:
                    raise
                on_first_rank(lambda: self._store.set_aside(self.found), f"{self.found} could not be put aside")
                aside.append(f"{error}; put aside")
                self._agree()
        if self._recipe.checkpoint.initial:
            load_initial(Path(self._recipe.checkpoint.initial), engine.shards, engine.blueprint)
            engine.renormaliser.renormalise()
            engine.publish()
        else:
            engine.initialise()
        return 0

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

    def _agree(self) -> None:
        """On the checkpoint that rank 0 finds, and what it has to tell about it (collective)."""
        self.found, self.notes, self.phases = from_first_rank(self._find, f"{self._recipe.training.output} could not be resumed")

    def _find(self) -> tuple[Path | None, list[str], list[Phase]]:
        self._store.check()
        self._store.catalogue.rescue()
        return continued(self._store.catalogue, self._recipe, self._ready.data, self._ready.batches.fingerprint)
