"""What the blocks must know of the sequences that go through them: made once a micro-batch, read by every block."""

from typing import NamedTuple

import torch

from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.rotary import document_positions, rotation_table


class Window(NamedTuple):
    """The positions of a micro-batch's tokens as this rank's attention sees them, and which of them see each other.

    Attributes:
        cos, sin: of each position's angles, fp32 [T, K] or, where documents count their own positions, [B, T, K].
        mask_B1TT: added to the scores, 0 or −∞, in the weights' dtype; None: each token sees all up to itself.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    mask_B1TT: torch.Tensor | None = None


def window_of(blueprint: Blueprint, length: int, documents_BT: torch.Tensor | None, module: torch.nn.Module) -> Window:
    """The window of sequences of `length` tokens for the layers of `module`; with documents, each keeps to itself.

    Attention has every position of the sequence on each rank: what sequence parallelism splits, it gathers before.
    Out of any compiled part, where the cached table would be computed anew by every block.
    """
    weight = next(module.parameters())
    cos, sin = rotation_table(length, blueprint.model, weight.device)
    if documents_BT is None:
        return Window(cos, sin)
    positions_BT = document_positions(documents_BT)
    return Window(cos[positions_BT], sin[positions_BT], document_mask(documents_BT, weight.dtype))


def document_mask(documents_BT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[B, 1, T, T]: 0 where a token sees another, its own document's past, else −∞."""
    same = documents_BT.unsqueeze(2) == documents_BT.unsqueeze(1)
    return torch.zeros_like(same, dtype=dtype).masked_fill_(~same.tril_(), -torch.inf).unsqueeze(1)
