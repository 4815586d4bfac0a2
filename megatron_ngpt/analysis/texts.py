"""The text at which a model is looked at: tokens whose hidden states are real, and how often each token occurs."""

from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.config.recipe import Dataset
from megatron_ngpt.data.sources import open_sources
from megatron_ngpt.data.tape import Shard
from megatron_ngpt.errors import DataError
from megatron_ngpt.inference.evaluate import open_tape

CHUNK = 1 << 22  # tokens counted at a time
COUNTED = 1 << 28  # tokens of a dataset, the first ones, that are counted


@dataclass(frozen=True)
class Text:
    """Of one dataset.

    Attributes:
        name: its prefix.
        tokens_T: its first ones, int64.
        counts_V: how often each token occurs, int64.
    """

    name: str
    tokens_T: torch.Tensor
    counts_V: np.ndarray


def open_text(weights: Weights, prefix: str | None, tokens: int) -> Text | None:
    """The dataset `prefix` (may be a glob); without one, what the model's own run validated on, else trained on, if it is still where its
    recipe says; else None.

    Raises:
        DataError: there is no dataset at `prefix`, it is empty, or has ids that the model does not know.
    """
    if prefix is not None:
        return _read(weights, prefix, open_tape(prefix).shards, tokens)
    data = weights.recipe.get("data", {})
    for kind in ("valid", "train"):
        sources, _ = open_sources(kind, [Dataset.model_validate(entry) for entry in data.get(kind) or []], 1)
        if sources:
            return _read(weights, sources[0].entry.prefix, sources[0].tape.shards, tokens)
    return None


def _read(weights: Weights, name: str, shards: list[Shard], tokens: int) -> Text:
    counts_V, first, room = np.zeros(weights.vocabulary, dtype=np.int64), [], COUNTED
    for shard in shards:
        end = min(shard.end, shard.begin + room)
        room -= end - shard.begin
        for start in range(shard.begin, end, CHUNK):
            part = shard.dataset.tape[start : min(start + CHUNK, end)].astype(np.int64)
            unknown = part[(part < 0) | (part >= weights.vocabulary)]
            if len(unknown):
                known = f"{weights.label} knows {weights.vocabulary}"
                raise DataError(f"--data: {name} holds token id {unknown[0]}, and {known}; give text made with its tokenizer")
            counts_V += np.bincount(part, minlength=weights.vocabulary)
            first.append(part[: tokens - sum(map(len, first))])
    if not first:
        raise DataError(f"--data: {name} holds no tokens; give a dataset with text")
    return Text(name, torch.from_numpy(np.concatenate(first)), counts_V)
