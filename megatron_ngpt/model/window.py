"""What the blocks must know of the sequences that go through them: made once a micro-batch, read by every block."""

from typing import NamedTuple

import numpy as np
import torch

from megatron_ngpt.model.blueprint import Blueprint
from megatron_ngpt.model.rotary import document_positions, rotation_table
from megatron_ngpt.parallel.attention_plan import held_runs
from megatron_ngpt.parallel.documents import Documents, documents_of


class Window(NamedTuple):
    """The positions of a micro-batch's tokens as this rank's attention projects them, and which of them see each other.

    Attributes:
        cos, sin: of each position's angles, fp32 [T, K] or, where documents count their own positions, [B, T, K].
        documents: keep to themselves; None: each token sees all up to itself.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    documents: Documents | None = None


def window_of(blueprint: Blueprint, length: int, documents_BT: torch.Tensor | None, module: torch.nn.Module) -> Window:
    """The window of sequences of which each context rank has `length` tokens, for the layers of `module`.

    With documents (of the whole sequence, best in host memory, where they are looked at), each keeps to itself. A tensor rank's
    attention has all these tokens: what sequence parallelism splits, it gathers before. Out of any compiled part, where the cached
    table would be computed anew by every block.
    """
    device, axis = next(module.parameters()).device, blueprint.grid.context
    cos, sin = rotation_table(length * axis.size, blueprint.model, device)
    held = torch.from_numpy(held_positions(blueprint, length * axis.size))
    if documents_BT is None:
        return Window(cos, sin) if axis.size == 1 else Window(cos[held], sin[held])
    positions_BT = document_positions(documents_BT)[:, held].to(device)
    return Window(cos[positions_BT], sin[positions_BT], documents_of(documents_BT, device))


def held_positions(blueprint: Blueprint, context: int) -> np.ndarray:
    """The positions of a sequence of `context` tokens that this context rank holds, in the order it holds them, int64 [T]."""
    axis = blueprint.grid.context
    return np.concatenate([np.arange(*run) for run in held_runs(context, axis.size, axis.rank, blueprint.context_kind)])
