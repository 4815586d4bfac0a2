"""How embeddings lie: norms, eigenvalues, and cosines of pairs, of the input's and the output's."""

from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.weights import Weights

NAMES = {"input": "model.embed_tokens.weight", "output": "lm_head.weight"}
PAIRS = 1_000_000  # that are drawn where there are more; the mean's error is then below 0.001
BLOCK_ENTRIES = 1 << 18  # numbers that are in float64 at a time


@dataclass(frozen=True)
class Embedding:
    """Of `end` input or output.

    Attributes:
        norms: of each entry's vector, float64 [V].
        eigenvalues: of the second moments EᵀE / V, falling, float64 [D].
        cosines: between different entries: of all pairs, or of `PAIRS` drawn by a fixed seed; float64.
    """

    end: str
    norms: np.ndarray
    eigenvalues: np.ndarray
    cosines: np.ndarray


def embedding(weights: Weights, end: str) -> Embedding:
    """The embeddings of one end; the matrix is in memory in fp32, blocks of it in float64."""
    table_VD = weights.effective(NAMES[end])
    rows = max(1, BLOCK_ENTRIES // table_VD.shape[1])
    norms, moments_DD = [], torch.zeros(table_VD.shape[1], table_VD.shape[1], dtype=torch.float64)
    for block in table_VD.split(rows):
        exact = block.double()
        norms.append(exact.norm(dim=1))
        moments_DD.addmm_(exact.t(), exact)
    norms_V = torch.cat(norms)
    eigenvalues = torch.linalg.eigvalsh(moments_DD / len(table_VD)).flip(0).clamp_min(0)
    return Embedding(end, norms_V.numpy(), eigenvalues.numpy(), _cosines(table_VD, norms_V.clamp_min(1e-300), rows))


def _cosines(table_VD: torch.Tensor, norms_V: torch.Tensor, rows: int) -> np.ndarray:
    entries = len(table_VD)
    if entries * (entries - 1) // 2 <= PAIRS:
        first, second = torch.triu_indices(entries, entries, 1)
    else:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(entries, (PAIRS,), generator=generator)
        second = (first + torch.randint(1, entries, (PAIRS,), generator=generator)) % entries  # never itself
    parts = zip(first.split(rows), second.split(rows), strict=True)
    products = [(table_VD[a].double() * table_VD[b]).sum(1) / (norms_V[a] * norms_V[b]) for a, b in parts]
    return torch.cat(products).numpy() if products else np.zeros(0)
