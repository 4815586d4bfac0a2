"""Attention over context ranks by heads: slices of the sequence become slices of the heads, and back.

One all-to-all carries queries, keys and values, one brings the results. Shapes: B batch, T whole sequence, c context ranks, H query heads
and G key/value heads before the exchange, K head size.
"""

from collections.abc import Callable

import torch

from megatron_ngpt.config.costs.traffic import copies
from megatron_ngpt.parallel.grid import Axis
from megatron_ngpt.parallel.regions import heads_to_sequence, sequence_to_heads

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attention_by_heads(q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, v_BTGK: torch.Tensor, axis: Axis, attend: Attend) -> torch.Tensor:
    """`attend` on whole sequences of some heads: [B, T/c, H, K] from q [B, T/c, H, K] and k, v [B, T/c, G, K].

    A rank's query heads are neighbours, and so are those of one key/value head. Where G does not divide over the ranks, each of
    its heads goes to every rank whose queries read it; autograd adds their gradients. c divides H.
    """
    if axis.size == 1:
        return attend(q_BTHK, k_BTGK, v_BTGK)
    times = copies(k_BTGK.shape[2], axis.size)
    k, v = (x.repeat_interleave(times, 2) if times > 1 else x for x in (k_BTGK, v_BTGK))
    parts = [x.unflatten(2, (axis.size, -1)) for x in (q_BTHK, k, v)]
    heads = [part.shape[3] for part in parts]
    together = sequence_to_heads(torch.cat(parts, 3).flatten(2, 3), axis)
    return heads_to_sequence(attend(*together.split(heads, 2)), axis)
