"""nGPT's learned scales as they act, and how often the tokens of a dataset occur."""

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.analysis.weights import Weights
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.errors import DataError

CHUNK = 1 << 22  # tokens counted at a time


@dataclass(frozen=True)
class Scales:
    """All effective, float64.

    Attributes:
        alpha: eigen learning rates, by `attention` and `mlp`: [layers, D].
        qk: s_qk, [layers, key/value heads, K].
        logit: s_z, [V].
    """

    alpha: dict[str, np.ndarray]
    qk: np.ndarray
    logit: np.ndarray


def scales(weights: Weights) -> Scales | None:
    """None for the baseline, which has none."""
    if weights.model.arch != "ngpt":
        return None

    def of_layers(name: str) -> np.ndarray:
        names = [f"model.layers.{layer}.{name}" for layer in range(weights.model.layers)]
        return np.stack([weights.effective(name).double().numpy() for name in names])

    alpha = {"attention": of_layers("self_attn.alpha"), "mlp": of_layers("mlp.alpha")}
    return Scales(alpha, of_layers("self_attn.qk_scale"), weights.effective("logit_scale").double().numpy())


def open_data(prefix: str, vocabularies: dict[str, int]) -> tuple[IndexedDataset, np.ndarray]:
    """The dataset, and how often each token occurs in it, int64 [largest vocabulary].

    Raises:
        DataError: no such dataset, or it has ids that one of the models, by label, does not know.
    """
    try:
        dataset = IndexedDataset(prefix)
    except DataError as error:
        raise DataError(*(f"--data: {problem}" for problem in error.problems)) from None
    if not dataset.tokens:
        raise DataError(f"--data: {prefix} holds no tokens; give a dataset with text")
    counts = np.zeros(max(vocabularies.values()), dtype=np.int64)
    for start in range(0, dataset.tokens, CHUNK):
        part = dataset.tape[start : start + CHUNK].astype(np.int64)
        for label, vocabulary in vocabularies.items():
            if part.min() < 0 or part.max() >= vocabulary:
                raise DataError(f"--data: {prefix} holds token id {part.max()}, and {label} knows {vocabulary}; give other data")
        counts += np.bincount(part, minlength=len(counts))
    return dataset, counts
