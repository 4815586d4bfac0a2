"""The documents of a micro-batch as tensors of one shape, which compiled blocks take from batch to batch without looking into them.

Shapes: B rows, T tokens of a whole sequence.
"""

from itertools import pairwise
from typing import NamedTuple

import torch

from megatron_ngpt.parallel.attention_plan import Run


class Documents(NamedTuple):
    """Where the documents of all rows, end to end, begin.

    Attributes:
        bounds: each document's first token, then B · T until all is filled: int32 [B · T + 1] in host memory, for who looks at them.
        on_device: the same, for kernels.
    """

    bounds: torch.Tensor
    on_device: torch.Tensor


def documents_of(documents_BT: torch.Tensor, device: torch.device) -> Documents:
    """The runs of equal numbers in each row, for attention on `device`."""
    tokens = documents_BT.numel()
    bounds = torch.full((tokens + 1,), tokens, dtype=torch.int32)
    starts = document_starts(documents_BT.cpu()).flatten().nonzero().flatten()
    bounds[: len(starts)] = starts
    return Documents(bounds, bounds.to(device, non_blocking=True))


def document_starts(documents_BT: torch.Tensor) -> torch.Tensor:
    """Whether a token is its document's first in its row, bool [B, T]."""
    starts = torch.ones_like(documents_BT, dtype=torch.bool)
    starts[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return starts


def document_count(bounds: torch.Tensor) -> int:
    """How many documents `Documents.bounds` tell of; the first entry after them ends the last."""
    return int((bounds < len(bounds) - 1).sum())


def document_runs(bounds: torch.Tensor, length: int) -> list[list[Run]]:
    """The runs of positions of each row's documents, from `Documents.bounds` of sequences of `length` tokens."""
    runs = [[] for _ in range(len(bounds) // length)]
    for start, stop in pairwise(bounds[: document_count(bounds) + 1].tolist()):
        row = start // length
        runs[row].append((start - row * length, stop - row * length))
    return runs
