"""Causal attention in which each document of a window sees itself alone, without a mask: what it costs shrinks with the documents.

Shapes: B batch, T tokens, H query heads, G key/value heads, K head size.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from megatron_ngpt.parallel.attention_plan import Run
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.ring import attention_in_blocks

_ALONE = Axis()


@dataclass(frozen=True)
class Documents:
    """The runs of each row's documents over the whole sequence. A class of its own, into which a compiled block does not look."""

    runs: list[list[Run]]
    device: torch.device

    @cached_property
    def bounds(self) -> torch.Tensor:
        """Where each document starts in all rows end to end, and the end of the last: int32 on the device."""
        length = self.runs[0][-1][1]
        starts = [row * length + start for row, runs in enumerate(self.runs) for start, _ in runs]
        return torch.tensor([*starts, length * len(self.runs)], dtype=torch.int32).to(self.device, non_blocking=True)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(stop - start for runs in self.runs for start, stop in runs)


@torch._disable_dynamo
def document_attention(
    q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, scale: float, documents: Documents, ring: Axis = _ALONE
) -> torch.Tensor:
    """softmax(scale · q kᵀ) v within documents, [B, T, H, K]. Every rank here has whole sequences, or each of `ring` its positions.

    On GPUs in half precision one kernel for all documents of whole sequences, elsewhere one rectangle after another.
    """
    if ring.size > 1 or not q_BTHK.is_cuda or q_BTHK.dtype == torch.float32:
        return attention_in_blocks(q_BTHK, k_BTGK, v_BTGK, scale, ring, documents.runs)
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.flatten(0, 1) for x in (q_BTHK, k_BTGK, v_BTGK))
    bounds, longest = documents.bounds, documents.longest
    found = varlen_attn(
        q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    return found.view_as(q_BTHK)
