"""Entropies, in nats, of what attention and the head choose from. No tensor of T × T, and never all logits at once.

Shapes: B batch, T tokens here, H query heads and G key/value heads here, K head size, S keys of the whole sequence, Q queries looked at,
V vocabulary entries here.
"""

import numpy as np
import torch

from megatron_ngpt.model.attention import Attention
from megatron_ngpt.model.ends import Head
from megatron_ngpt.model.window import Window
from megatron_ngpt.parallel.attention_plan import held_runs
from megatron_ngpt.parallel.collectives import all_gather, all_reduce
from megatron_ngpt.parallel.documents import document_runs
from megatron_ngpt.parallel.products import fold, outputs

QUERIES = 16  # of each head and sequence are looked at, evenly spread, the last one among them
_SCORES = 1 << 22  # at a time


def queries_looked_at(context: int) -> np.ndarray:
    """Their positions in a sequence of `context` tokens, int64."""
    count = min(QUERIES, context)
    return np.arange(1, count + 1) * context // count - 1


def attention_entropy(attention: Attention, q_BTHK: torch.Tensor, k_BTGK: torch.Tensor, window: Window) -> torch.Tensor:
    """The sum, over the queries looked at that are held here, of the entropy of their attention; fp32 scalar (collective over the
    context ranks, whose keys every query reads)."""
    axis, kind = attention.context, attention.blueprint.context_kind
    context, heads = q_BTHK.shape[1] * axis.size, q_BTHK.shape[2]
    runs = [held_runs(context, axis.size, rank, kind) for rank in range(axis.size)]
    held = [np.concatenate([np.arange(*run) for run in of_rank]) for of_rank in runs]
    if axis.size > 1:
        k_BTGK = all_gather(k_BTGK, axis, 1)
    keys_S = torch.from_numpy(np.concatenate(held)).to(q_BTHK.device)
    k_BHSK = k_BTGK.float().repeat_interleave(heads // k_BTGK.shape[2], 2).transpose(1, 2)
    total = torch.zeros((), device=q_BTHK.device)
    places = np.flatnonzero(np.isin(held[axis.rank], queries_looked_at(context)))
    for part in np.array_split(places, -(-len(places) * heads * context * len(q_BTHK) // _SCORES)) if len(places) else []:
        positions = held[axis.rank][part]
        starts_BQ = torch.tensor(_starts(window, positions, len(q_BTHK), context), device=q_BTHK.device)
        seen_BQS = (keys_S <= torch.from_numpy(positions).to(keys_S.device).unsqueeze(1)) & (keys_S >= starts_BQ.unsqueeze(2))
        q_BHQK = q_BTHK[:, torch.from_numpy(part).to(q_BTHK.device)].float().transpose(1, 2)
        scores_BHQS = (q_BHQK @ k_BHSK.transpose(2, 3) * attention.softmax_scale).masked_fill(~seen_BQS.unsqueeze(1), -torch.inf)
        log_p = scores_BHQS.log_softmax(-1)
        total -= (log_p.exp() * log_p.masked_fill(~seen_BQS.unsqueeze(1), 0)).sum()
    return total


def _starts(window: Window, positions: np.ndarray, rows: int, context: int) -> list[list[int]]:
    """The first position that each query sees, by row of the batch: where its document begins."""
    if window.documents is None:
        return [[0] * len(positions)] * rows
    documents = document_runs(window.documents.bounds, context)[:rows]
    return [[max(start for start, _ in runs if start <= position) for position in positions] for runs in documents]


def prediction_entropy(head: Head, h_BTD: torch.Tensor) -> torch.Tensor:
    """The sum, over these tokens, of the entropy of what the head predicts; fp32 scalar (collective over the tensor ranks, which divide
    the vocabulary; the same on all of them)."""
    weight_VD, scale_V = head.matrix()
    folded, total = fold(weight_VD, scale_V), torch.zeros((), device=h_BTD.device)
    for (x_ND,) in head.losses.chunks(head.enter(h_BTD).flatten(0, -2)):
        logits_NV = outputs(x_ND, folded, False)
        none = torch.zeros(len(x_ND), dtype=torch.int64, device=x_ND.device)
        log_z_N = head.losses.losses(logits_NV, none)[1]
        logits_NV = logits_NV.float()
        mean_N = ((logits_NV - log_z_N.unsqueeze(1)).exp() * logits_NV).sum(1)
        total += (log_z_N - (mean_N if head.axis.size == 1 else all_reduce(mean_N, head.axis))).sum()
    return total
