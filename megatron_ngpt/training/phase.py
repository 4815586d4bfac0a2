"""The phases of a run: a change of the context begins a new one, in which samples are counted, and ordered, anew.

A sample is a window of `model.context` tokens, so with another context there are other samples. The place in the data is a function of
the recipe, the step and the step that the phase began after, which every checkpoint carries.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from megatron_ngpt.config.recipe import Recipe
from megatron_ngpt.data.skips import Ranges, as_ranges, batch_of, with_batches


@dataclass(frozen=True)
class Phase:
    """One phase of a run.

    Attributes:
        after: the step that it began after; 0 for a run's first.
        context, global_batch: tokens of its samples, samples of its steps.
        samples, tokens: that the phases before it trained on.
        skipped: batches of this phase that no step reads, since the run rolled back from them.
    """

    after: int
    context: int
    global_batch: int
    samples: int = 0
    tokens: int = 0
    skipped: Ranges = ()

    def batch_of(self, step: int) -> int:
        """The number of the batch that `step`, which lies in this phase, reads."""
        return batch_of(step, self.skipped)

    def without(self, batches: Iterable[int]) -> "Phase":
        """The phase with these batches skipped too."""
        return replace(self, skipped=with_batches(self.skipped, batches))

    def samples_at(self, step: int) -> int:
        """Samples that the run has trained on after `step`, which lies in this phase."""
        return self.samples + (step - self.after) * self.global_batch

    def tokens_at(self, step: int) -> int:
        """Tokens that the run has trained on after `step`, which lies in this phase."""
        return self.tokens + (step - self.after) * self.global_batch * self.context


def phases_of(recipe: Recipe, state: dict | None = None) -> list[Phase]:
    """The phases of the recipe's run, the one to come last, as it goes on from a checkpoint's `state`; None: as it begins."""
    context, batch = recipe.model.context, recipe.training.global_batch
    if state is None:
        return [Phase(0, context, batch)]
    phases = [Phase(**{**phase, "skipped": as_ranges(phase["skipped"])}) for phase in state["phases"]]
    step = state["step"]
    if phases[-1].context == context:
        return phases
    return [*phases, Phase(step, context, batch, phases[-1].samples_at(step), phases[-1].tokens_at(step))]


def phase_at(phases: list[Phase], step: int) -> Phase:
    """The phase that trains `step`."""
    return next(phase for phase in reversed(phases) if phase.after < step)
