"""`ngpt evaluate --lengths`: a model's perplexity at several lengths of context, on whole documents, and its loss by position.

Windows lie within one document each, so that no document is mixed with another, and every token of a document but its first is predicted
once: at every length the same tokens. Memory grows with the length, not with its square.
Shapes: B windows that go through the model together, T positions of a window that this context rank holds.
"""

from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.config.recipe import Model, RopeScaling
from megatron_ngpt.data.tape import Tape
from megatron_ngpt.errors import ConfigError, DataError
from megatron_ngpt.inference.evaluate import TOKENS, check_finite, check_tokenizer, open_tape, perplexity, total
from megatron_ngpt.inference.forward import token_losses
from megatron_ngpt.inference.load import LoadedModel
from megatron_ngpt.inference.words import count_words
from megatron_ngpt.model.window import held_positions

PADDINGS = 16  # different lengths that short windows are filled up to, so that rotation tables are few


@dataclass(frozen=True)
class Text:
    """The documents that a model is judged on.

    Attributes:
        prefix: as `--data` names them.
        tape: their tokens.
        bounds: where each begins on the tape, and where the last one ends, int64 [documents + 1].
        words: of their raw text; None where that is not known.
    """

    prefix: str
    tape: Tape
    bounds: np.ndarray
    words: int | None

    @property
    def longest(self) -> int:
        """Tokens that the longest document lets predict."""
        return int(np.diff(self.bounds).max(initial=1)) - 1


@dataclass(frozen=True)
class LengthResult:
    """What a model does at one length.

    Attributes:
        model: its path.
        rope_scaling, rope_factor: of its positions; `trained`: its own.
        context: tokens that a window predicts, at most; trained_context: the model's own.
        stride: tokens from the start of a window to that of the next.
        loss: nats a token.
        perplexity, word_perplexity: exp of the mean loss a token, and a word of the raw text; the latter None where words are not known.
        tokens: predicted.
        documents: that they are of; filling: of these, those that fill a window.
        sums, counts: at each position of a window, the summed loss (nats, float64 [context]) and how many tokens were predicted there.
    """

    model: str
    rope_scaling: str
    rope_factor: float
    context: int
    trained_context: int
    stride: int
    loss: float
    perplexity: float
    word_perplexity: float | None
    tokens: int
    documents: int
    filling: int
    sums: np.ndarray
    counts: np.ndarray

    def shown(self) -> dict:
        """What a person reads of it."""
        return {name: value for name, value in self.__dict__.items() if name not in ("sums", "counts")}


def open_text(loaded: LoadedModel, prefix: str, documents: int | None, lengths: list[int]) -> Text:
    """The first `documents` of a dataset, by default all. Raises DataError if none is as long as the longest length."""
    tape = open_tape(prefix)
    check_tokenizer(loaded, prefix)
    bounds = tape.document_bounds()[: None if documents is None else documents + 1]
    text = Text(prefix, tape, bounds, count_words(prefix, tape, bounds, loaded))
    if text.longest < lengths[-1]:
        first = f"of the first {documents} documents " if documents else ""
        raise DataError(
            f"--lengths {lengths[-1]}: no document {first}of {prefix} is so long, the longest lets predict {text.longest} tokens; "
            "choose lengths up to that, or longer documents"
        )
    return text


def scaling_for(model: Model, kind: str | None, factor: float | None, length: int) -> RopeScaling | None:
    """How positions are scaled for a length; None: as the model was trained.

    A `factor` that is not given is the length over the model's context, or over what it had before its own scaling; nothing is scaled
    up to that.
    """
    if kind is None:
        return None
    if kind != "none":
        factor = factor or length / (model.rope_scaling.original_context or model.context)
        if factor > 1:
            return RopeScaling(kind=kind, factor=factor)
    return RopeScaling(kind="none", factor=1.0)


def windows_of(bounds: np.ndarray, length: int, stride: int) -> np.ndarray:
    """The windows of all documents, int64 [windows, 3]: where each begins on the tape, how many tokens it predicts, and the first of these
    that no window before it has predicted.

    Windows begin `stride` apart, as far as their document has tokens to predict.
    """
    found = []
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        predicted = end - begin - 1
        if predicted < 1:
            continue
        starts = np.arange(1 + max(0, -(-(predicted - length) // stride))) * stride
        sizes = np.minimum(length, predicted - starts)
        fresh = np.concatenate([[0], starts[:-1] + sizes[:-1] - starts[1:]])
        found.append(np.stack([begin + starts, sizes, fresh], 1))
    return np.concatenate(found) if found else np.empty((0, 3), np.int64)


def evaluate_length(loaded: LoadedModel, text: Text, length: int, stride: int | None, name: str, kind: str | None) -> LengthResult:
    """The result at one length (collective, the same on every rank); the model's positions are scaled already, as `kind` says.

    Raises:
        ConfigError: the stride leaves gaps between windows.
        DataError: a token is outside the model's vocabulary.
        CheckpointError: the loss is not finite.
    """
    stride = stride or length
    if stride > length:
        raise ConfigError(f"--stride {stride}: windows of --lengths {length} would leave tokens out between them; give at most {length}")
    windows = windows_of(text.bounds, length, stride)
    windows = windows[np.argsort(-windows[:, 1], kind="stable")]
    together = max(1, TOKENS // length)
    parts = [windows[first : first + together] for first in range(0, len(windows), together)]
    sums = total(loaded, parts, lambda part: _summed_by_position(loaded, text.tape, part, length), length).numpy()
    counts = _counted(windows, length)
    tokens, nats = int(counts.sum()), float(sums.sum())
    check_finite(nats, text.prefix)
    scaling = loaded.model.rope_scaling
    return LengthResult(
        name,
        kind or "trained",
        scaling.factor,
        length,
        loaded.model.context,
        stride,
        nats / tokens,
        perplexity(nats / tokens),
        perplexity(nats / text.words) if text.words else None,
        tokens,
        int((np.diff(text.bounds) > 1).sum()),
        int((np.diff(text.bounds) > length).sum()),
        sums,
        counts,
    )


def _counted(windows: np.ndarray, length: int) -> np.ndarray:
    """How many of the windows count each position, int64 [length]."""
    changes = np.zeros(length + 1, np.int64)
    np.add.at(changes, windows[:, 2], 1)
    np.add.at(changes, windows[:, 1], -1)
    return np.cumsum(changes)[:-1]


@torch.inference_mode()
def _summed_by_position(loaded: LoadedModel, tape: Tape, windows: np.ndarray, length: int) -> torch.Tensor:
    """The losses of the tokens that these windows count, summed by their position, float64 [length]; zeros before the last stage.

    Windows are filled up behind their tokens, where causality hides it from them, to what the context ranks divide.
    """
    module, sizes = loaded.module, torch.from_numpy(windows[:, 1])
    padded = _padded(int(sizes.max()), length, 2 * loaded.grid.context.size)
    tokens = np.zeros((len(windows), padded + 1), np.int64)
    for row, (start, size, _) in zip(tokens, windows.tolist(), strict=True):
        row[: size + 1] = tape.windows(np.array([start]), size + 1, loaded.vocabulary)[0]
    held = held_positions(module.blueprint, padded)
    inputs, targets = (torch.from_numpy(tokens[:, places]).to(loaded.device) for places in (held, held + 1))
    losses_BT = token_losses(module, inputs, targets)
    sums = torch.zeros(padded, dtype=torch.float64)
    if losses_BT is not None:
        positions_T = torch.from_numpy(held)
        counted_BT = (positions_T >= torch.from_numpy(windows[:, 2:])) & (positions_T < sizes.unsqueeze(1))
        sums[positions_T] = torch.where(counted_BT, losses_BT.double().cpu(), 0.0).sum(0)
    return torch.nn.functional.pad(sums, (0, max(0, length - padded)))[:length]


def _padded(size: int, length: int, runs: int) -> int:
    """The least of a few sizes up to the length that holds `size` tokens and divides into `runs`."""
    step = -(-length // PADDINGS)
    step = -(-step // runs) * runs
    return -(-size // step) * step
