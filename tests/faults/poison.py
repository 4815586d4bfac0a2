"""Batches that do harm: what a rank does before its run so that updates from some of them have a bad gradient norm, by the run's name."""

import os
from pathlib import Path

ROW, ONE, SPIKE = (12, 13, 14), (7,), (9,)
SHORT = 6  # steps of history, where a test cannot wait for 128
RUNS: dict[str, tuple[tuple[int, ...], float]] = {  # batches, and by what the squared norm of them is multiplied on the last rank
    "row": (ROW, float("nan")), "rare": (ROW, float("nan")), "one": (ONE, float("nan")), "begun": (ONE, float("nan")),
    "spike": (SPIKE, 1e8), "always": (tuple(range(6, 99)), float("nan")), "start": ((1, 2, 3), float("nan")),
}  # fmt: skip
TRANSIENT = "once"  # a run of this name is struck at batch `ONE` the first time alone


def flip(values) -> None:
    """The lowest bit of the first number."""
    import torch

    values.view(-1)[:1].view({2: torch.int16, 4: torch.int32}[values.element_size()]).bitwise_xor_(1)


def before(output: Path) -> None:
    """On a rank, before its run: watch which batch an update is made of, and spoil its norm; `without` never reads those of a row."""
    from megatron_ngpt.data.batches import BatchSource
    from megatron_ngpt.data.skips import batch_of
    from megatron_ngpt.training import history
    from megatron_ngpt.training.engine import Engine
    from megatron_ngpt.training.resume import Beginning
    from megatron_ngpt.training.update import Update

    history.STEPS = SHORT
    kind = output.name.partition("-")[0]
    bad, factor = RUNS.get(kind, (ONE if kind == TRANSIENT else (), float("nan")))
    run, judge, rows, init = (getattr(of, "__wrapped__", of) for of in (Engine._run, Update._judge, BatchSource.rows, Beginning.__init__))
    now, last = {"bad": False, "struck": False}, int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def numbered(self, step, *place):
        found = rows(self, step, *place)
        found.batch = batch_of(step, self._skipped)
        return found

    def watching(self, given, *arguments, **options):
        if kind == "flipped" and last and given.batch == ONE[0]:
            flip(next(shard.master for name, shard in self.shards.items() if name.endswith("up_proj.weight")))
        now["bad"] = given.batch in bad and not (kind == TRANSIENT and now["struck"])
        now["struck"] = now["struck"] or now["bad"]
        return run(self, given, *arguments, **options)

    def spoiling(self, squared_norm):
        judge(self, squared_norm * factor if now["bad"] and last else squared_norm)

    def skipping(self, *arguments):
        init(self, *arguments)
        if kind == "without":
            self.phases = [self.phases[-1].without(ROW)]

    for owner, name, wrapper, original in ((BatchSource, "rows", numbered, rows), (Engine, "_run", watching, run),
                                           (Update, "_judge", spoiling, judge), (Beginning, "__init__", skipping, init)):
        wrapper.__wrapped__ = original
        setattr(owner, name, wrapper)
