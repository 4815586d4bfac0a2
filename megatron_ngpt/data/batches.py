"""What a training or validation step reads, as a pure function of the recipe and the step's number.

1. Each dataset entry is a tape; window i holds the context + 1 tokens from i · context on, plus an offset of the epoch's own.
2. A keyed permutation of window numbers, another one each epoch, orders an entry's samples; no window comes twice in an epoch.
3. A blend deals the global sample numbers out to the entries by weight.
So any rank, on any node, finds the rows of any step at once, with no index files and no state.
"""

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_ngpt.config.recipe import Dataset, Recipe
from megatron_ngpt.data.blend import Blend
from megatron_ngpt.data.order import Permutation, derived_numbers
from megatron_ngpt.data.skips import Ranges, batch_of
from megatron_ngpt.data.sources import Source, misfits, open_sources, overlaps
from megatron_ngpt.data.tape import Tape, fingerprint
from megatron_ngpt.data.tokenizer import Tokenizer
from megatron_ngpt.errors import DataError


@dataclass
class Rows:
    """Some rows of a global batch.

    tokens: int32 [rows, context + 1]. sources: the number of the dataset entry that each row comes from, int64 [rows]. documents: which
    document each token belongs to, numbered from 0 within its row, from the index's document boundaries, int32 [rows, context + 1]; made
    when first asked for.
    """

    tokens: np.ndarray
    places: list[tuple[Tape, np.ndarray, np.ndarray]]       # (tape, row numbers, window starts on the tape)
    sources: np.ndarray

    @cached_property
    def documents(self) -> np.ndarray:
        """The document numbers, see above."""
        numbers = np.empty_like(self.tokens)
        for tape, rows, starts in self.places:
            numbers[rows] = tape.number_documents(starts, self.tokens.shape[1])
        return numbers

    def origins(self) -> list[tuple[str, int, int]]:
        """For each row: (dataset prefix, number of the document its first token is in, the token's offset in that document)."""
        found: dict[int, tuple[str, int, int]] = {}
        for tape, rows, starts in self.places:
            found.update(zip(rows.tolist(), map(tape.origin, starts.tolist()), strict=True))
        return [found[row] for row in range(len(self.tokens))]


class Windows:
    """The samples of one tape, epoch after epoch: `count` windows an epoch, in the same order in each if `seed` is None."""

    def __init__(self, tape: Tape, context: int, seed: int | None, number: int):
        self.tape, self._context, self._key = tape, context, (seed, number)
        self.count, self._slack = divmod(tape.tokens - 1, context)

    def after(self, step: int) -> "Windows":
        """The same windows in the order of a phase that begins after `step`."""
        windows = copy.copy(self)
        windows._key = (*self._key, f"after {step}") if step else self._key
        return windows

    def starts(self, samples: np.ndarray) -> np.ndarray:
        """Tape positions of the windows of samples 0, 1, 2, ... (int64), epochs chained."""
        epochs, places = np.divmod(samples, self.count)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            starts[chosen] = self._epoch_starts(epoch, places[chosen])
        return starts

    def _epoch_starts(self, epoch: int, places: np.ndarray) -> np.ndarray:
        if self._key[0] is None:
            return Permutation(self.count, "validation", self._key[1])(places) * self._context
        offset = int(derived_numbers("offset", *self._key, epoch)[0]) % (self._slack + 1)
        return Permutation(self.count, "order", *self._key, epoch)(places) * self._context + offset


class BatchSource:
    """The global batches of a run: `global_batch` rows of `context` + 1 tokens a step.

    fingerprint: what the order of samples depends on besides context and step (the datasets' content and splits, the weights,
    the seed); a run must not be resumed on another. Objects hold no open files when pickled.
    """

    def __init__(
        self, tapes: list[Tape], weights: list[float], context: int, global_batch: int, seed: int | None, vocabulary: int
    ):
        self.context, self.global_batch, self._vocabulary, self._begun, self._skipped = context, global_batch, vocabulary, 0, ()
        self._windows = [Windows(tape, context, seed, number) for number, tape in enumerate(tapes)]
        self._blend = Blend(weights)
        identity = [[[fingerprint(shard) for shard in tape.shards] for tape in tapes], self._blend.counts, seed]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    @property
    def samples_per_epoch(self) -> int:
        """Windows in all datasets together: with weights in proportion to tokens, what one pass over the data takes."""
        return sum(windows.count for windows in self._windows)

    def after(self, step: int, skipped: Ranges = ()) -> "BatchSource":
        """The batches of a phase that begins after `step` (training/phase.py): from its first sample on, in an order of its own, without
        those that are `skipped`."""
        phase = copy.copy(self)
        phase._begun, phase._skipped, phase._windows = step, skipped, [windows.after(step) for windows in self._windows]
        return phase

    def rows(self, step: int, start: int, stop: int) -> Rows:
        """Rows [start, stop) of the global batch of step `step`, from 1 on, or from the first of the phase. Raises DataError for an
        id past the vocabulary."""
        first = self._begun + 1
        if step < first or not 0 <= start <= stop <= self.global_batch:
            raise ValueError(f"step {step}, rows [{start}, {stop}); steps count from {first}, rows lie in [0, {self.global_batch})")
        read_before = (batch_of(step, self._skipped) - first) * self.global_batch
        datasets, samples = self._blend.locate(read_before + np.arange(start, stop, dtype=np.int64))
        tokens = np.empty((stop - start, self.context + 1), np.int32)
        places = []
        for number in np.unique(datasets).tolist():
            rows = np.flatnonzero(datasets == number)
            windows = self._windows[number]
            starts = windows.starts(samples[rows])
            places.append((windows.tape, rows, starts))
            tokens[rows] = windows.tape.windows(starts, self.context + 1, self._vocabulary)
        return Rows(tokens, places, datasets)

    def epochs(self, step: int) -> list[float]:
        """How often each dataset entry has been read after `step`, since the first step of the run, or of the phase; what is skipped
        counts."""
        read = self._blend.dealt((batch_of(step, self._skipped) - self._begun) * self.global_batch)
        return [samples / windows.count for samples, windows in zip(read, self._windows, strict=True)]

    def rows_by_source(self, step: int) -> list[int]:
        """How many rows of the global batch of `step` come from each dataset entry."""
        last = batch_of(step, self._skipped) - self._begun
        before, after = (self._blend.dealt(batches * self.global_batch) for batches in (last - 1, last))
        return [b - a for a, b in zip(before, after, strict=True)]


@dataclass(frozen=True)
class Opened:
    """What a recipe's `data` section names, opened: the tokenizer (None: it cannot be), entries of the model's vocabulary, datasets."""

    tokenizer: Tokenizer | None
    vocabulary: int | None
    train: list[Source]
    valid: list[Source]


def training_batches(recipe: Recipe, opened: Opened | None = None) -> BatchSource:
    """The batches that the recipe trains on. Raises DataError or ConfigError for anything wrong with `data.train`; what is opened
    already, and found good, is not opened again."""
    context, training = recipe.model.context, recipe.training
    sources, problems = (opened.train, []) if opened else open_sources("train", recipe.data.train, context)
    problems += mixed_weights(recipe)
    if problems:
        raise DataError(*problems)
    weights = [source.tape.tokens if source.entry.weight is None else source.entry.weight for source in sources]
    tapes = [source.tape for source in sources]
    vocabulary = opened.vocabulary if opened else model_vocabulary(recipe)
    return BatchSource(tapes, weights, context, training.global_batch, training.seed, vocabulary)


def validation_batches(recipe: Recipe, opened: Opened | None = None) -> dict[str, BatchSource]:
    """The batches of each entry of `data.valid`, by its name; as `training_batches` for the rest.

    Their order depends on the dataset alone, not on the seed: steps 1 to n read the same samples in every evaluation, spread
    over the whole set; where n steps need more samples than there are, the same order begins anew.
    """
    context = recipe.model.context
    sources, problems = (opened.valid, []) if opened else open_sources("valid", recipe.data.valid, context)
    problems += repeated_names(recipe)
    if problems:
        raise DataError(*problems)
    vocabulary = opened.vocabulary if opened else model_vocabulary(recipe)
    return {
        entry_name(source.entry): BatchSource([source.tape], [1.0], context, recipe.training.global_batch, None, vocabulary)
        for source in sources
    }


def model_vocabulary(recipe: Recipe) -> int:
    """Entries of the model's vocabulary: `model.vocab`, or else the tokenizer's."""
    return recipe.model.vocab or Tokenizer(recipe.data.tokenizer).size


def entry_name(entry: Dataset) -> str:
    """The name an entry is reported by: its own, or its prefix's base name."""
    return entry.name or Path(entry.prefix).name


def train_names(recipe: Recipe) -> list[str]:
    """The names that the entries of `data.train` are reported by: as in validation, with the entry's number where several have one name."""
    names = [entry_name(entry) for entry in recipe.data.train]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def open_data(recipe: Recipe) -> tuple[Opened, list[str]]:
    """What the recipe's `data` section names, and every problem of it, a line each, naming the key, the value and a remedy.

    Cost does not depend on the datasets' size.
    """
    problems, tokenizer = [], None
    try:
        tokenizer = Tokenizer(recipe.data.tokenizer)
    except DataError as error:
        problems += [f"data.tokenizer: {problem}" for problem in error.problems]
    vocabulary = recipe.model.vocab or (tokenizer and tokenizer.size)
    if tokenizer and vocabulary < tokenizer.size:
        problems.append(f"model.vocab: {vocabulary} is smaller than the {tokenizer.size} entries of data.tokenizer "
                        f"{recipe.data.tokenizer}; use {tokenizer.size} or more, or null")
    train, train_problems = open_sources("train", recipe.data.train, recipe.model.context)
    valid, valid_problems = open_sources("valid", recipe.data.valid, recipe.model.context)
    problems += train_problems + valid_problems + mixed_weights(recipe) + repeated_names(recipe) + overlaps(train, valid)
    for source in train + valid:
        problems += misfits(source, tokenizer and tokenizer.sha256, vocabulary)
    return Opened(tokenizer, vocabulary, train, valid), list(dict.fromkeys(problems)) + ignored_keys(recipe)


def mixed_weights(recipe: Recipe) -> list[str]:
    """A line if some training entries have a weight and others leave it to their tokens, which cannot be compared."""
    missing = [number for number, entry in enumerate(recipe.data.train) if entry.weight is None]
    if 0 < len(missing) < len(recipe.data.train):
        return [f"data.train.{missing[0]}.weight: null beside entries that have one; give every entry a weight, or none"]
    return []


def repeated_names(recipe: Recipe) -> list[str]:
    """A line for each name that two validation entries would be reported by."""
    names = [entry_name(entry) for entry in recipe.data.valid]
    return [f"data.valid.{number}.name: {name} is taken by an entry before it; give each its own name"
            for number, name in enumerate(names) if name in names[:number]]


def ignored_keys(recipe: Recipe) -> list[str]:
    """A line for each key that has no meaning where it stands."""
    return [f"data.valid.{i}.weight: {e.weight}: validation entries are not blended; remove it"
                    for i, e in enumerate(recipe.data.valid) if e.weight is not None]
