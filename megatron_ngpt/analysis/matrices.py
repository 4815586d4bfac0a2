"""Singular values of attention's and feed-forward's matrices, of each head and whole: condition numbers and ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.weights import Weights

HEADS = {"q": "heads", "k": "groups", "v": "groups", "o": "heads"}
FEED_FORWARD = ("up", "gate", "down")


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, or of one head's part of it.

    Attributes:
        matrix: q, k, v, o, up, gate or down.
        layer: from 0.
        head: from 0 (of k and v: the key/value head); None for the whole matrix.
        values: float64, falling, as many as the shorter side.
    """

    matrix: str
    layer: int
    head: int | None
    values: np.ndarray

    @property
    def condition(self) -> float:
        """Largest over smallest singular value; infinite if that is 0."""
        return float(self.values[0] / self.values[-1]) if self.values[-1] > 0 else float("inf")

    def rank(self, tolerance: float) -> int:
        """How many singular values exceed `tolerance` times the largest."""
        return int((self.values > tolerance * self.values[0]).sum())


def spectra(weights: Weights, layer: int) -> Iterator[Spectrum]:
    """Of every matrix of a layer: attention's by head and whole, then feed-forward's. One is in memory at a time, in float64."""
    model = weights.model
    for matrix, count in HEADS.items():
        whole = weights.effective(f"model.layers.{layer}.self_attn.{matrix}_proj.weight").double()
        by_head = whole.t() if matrix == "o" else whole  # rows belong to heads
        for head, part in enumerate(by_head.chunk(getattr(model, count))):
            yield Spectrum(matrix, layer, head, singular_values(part))
        yield Spectrum(matrix, layer, None, singular_values(whole))
    for matrix in FEED_FORWARD:
        whole = weights.effective(f"model.layers.{layer}.mlp.{matrix}_proj.weight").double()
        yield Spectrum(matrix, layer, None, singular_values(whole))


def singular_values(matrix: torch.Tensor) -> np.ndarray:
    """Falling, float64 [shorter side]: not by the Gram matrix, which would lose those below 1e-8 of the largest."""
    return torch.linalg.svdvals(matrix.double()).numpy()
