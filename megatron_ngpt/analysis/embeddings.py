"""How embeddings lie: norms, eigenvalues, and cosines of pairs, of the input's and the output's."""

from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.matrices import singular_values
from megatron_ngpt.analysis.weights import Weights

NAMES = {"input": "model.embed_tokens.weight", "output": "lm_head.weight"}
PAIRS = 1_000_000  # that are drawn where there are more; the mean's error is then below 0.001
BLOCK = 1 << 14  # pairs at a time


@dataclass(frozen=True)
class Embedding:
    """Of `end` input or output.

    Attributes:
        norms: of each entry's vector, float64 [V].
        eigenvalues: of the second moments EᵀE / V, falling, float64 [min(V, D)].
        cosines: between different entries: of all pairs, or of `PAIRS` drawn by a fixed seed; float64.
    """

    end: str
    norms: np.ndarray
    eigenvalues: np.ndarray
    cosines: np.ndarray


def embedding(weights: Weights, end: str) -> Embedding:
    """The embeddings of one end; the matrix is in memory in float64."""
    table_VD = weights.effective(NAMES[end]).double()
    norms_V = table_VD.norm(dim=1)
    eigenvalues = singular_values(table_VD) ** 2 / len(table_VD)
    directions_VD = table_VD.div_(norms_V.clamp_min(1e-300).unsqueeze(1))
    return Embedding(end, norms_V.numpy(), eigenvalues, _cosines(directions_VD))


def _cosines(directions_VD: torch.Tensor) -> np.ndarray:
    entries = len(directions_VD)
    if entries * (entries - 1) // 2 <= PAIRS:
        first, second = torch.triu_indices(entries, entries, 1)
    else:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(entries, (PAIRS,), generator=generator)
        second = (first + torch.randint(1, entries, (PAIRS,), generator=generator)) % entries  # never itself
    parts = zip(first.split(BLOCK), second.split(BLOCK), strict=True)
    return torch.cat([(directions_VD[a] * directions_VD[b]).sum(1) for a, b in parts]).numpy()
