"""What an analysis found of one model."""

from dataclasses import dataclass

import numpy as np

from megatron_ngpt.analysis.embeddings import Embedding
from megatron_ngpt.analysis.jacobian import Extremes
from megatron_ngpt.analysis.matrices import Spectrum
from megatron_ngpt.analysis.scales import Scales


@dataclass(frozen=True)
class Result:
    """Everything about one model.

    Attributes:
        label: what it is called.
        described: kind, size and step, in a line.
        layers: how many.
        spectra: of every matrix, whole and by head.
        embeddings: of the input and of the output.
        scales: nGPT's; None for the baseline.
        jacobians: of each block and of all; empty without data.
        counts: how often each token occurs in the data, int64 [V]; None without data.
        text: the data and the number of its tokens at which Jacobians were taken; None without.
    """

    label: str
    described: str
    layers: int
    spectra: list[Spectrum]
    embeddings: list[Embedding]
    scales: Scales | None
    jacobians: list[Extremes]
    counts: np.ndarray | None
    text: tuple[str, int] | None

    def parts(self, matrix: str, layer: int | None = None) -> list[Spectrum]:
        """Of the heads of a matrix of attention, or of a whole one of the feed-forward; of one layer or of all."""
        found = [s for s in self.spectra if s.matrix == matrix and layer in (None, s.layer)]
        return [s for s in found if s.head is not None] or found
