"""How likely continuations are after their contexts."""

from typing import NamedTuple

import torch

from megatron_ngpt.inference.cache import KeyValueCache
from megatron_ngpt.inference.forward import extend, pad
from megatron_ngpt.inference.load import LoadedModel
from megatron_ngpt.inference.ranks import from_last_stage
from megatron_ngpt.model.decoder import Decoder
from megatron_ngpt.model.ends import local_vocabulary
from megatron_ngpt.parallel import cross_entropy
from megatron_ngpt.parallel.collectives import all_gather
from megatron_ngpt.parallel.grid import Axis


class Scored(NamedTuple):
    """The log-likelihood of a continuation, nats, and whether it takes the likeliest token each time."""

    log_likelihood: float
    greedy: bool


@torch.inference_mode()
def score(loaded: LoadedModel, pairs: list[tuple[list[int], list[int]]]) -> list[Scored]:
    """The score of each (context, continuation), neither of which may be empty, all in one batch (collective).

    Contexts that are equal are computed once, and their continuations go on from the same cache.
    """
    module, device = loaded.module, loaded.device
    contexts = list(dict.fromkeys(tuple(context) for context, _ in pairs))
    row_of = {context: row for row, context in enumerate(contexts)}
    rows = [row_of[tuple(context)] for context, _ in pairs]
    longest = max(len(context) for context in contexts) + max(len(then) for _, then in pairs)
    cache = KeyValueCache(module, len(contexts), longest)
    tokens_BT, counts = pad([list(context) for context in contexts], device)
    h_BTD = extend(module, cache, tokens_BT, counts)
    first = None if h_BTD is None else h_BTD[torch.arange(len(contexts)), (counts - 1).to(device)][rows]  # predicts the first tokens
    rest = None
    if any(len(then) > 1 for _, then in pairs):
        cache.select(rows)
        rest = extend(module, cache, *pad([then[:-1] for _, then in pairs], device))
    found = None
    if first is not None:
        thens = [then for _, then in pairs]
        found = torch.stack([_score_row(module, first, rest, number, then) for number, then in enumerate(thens)])
    return [Scored(log, bool(greedy)) for log, greedy in from_last_stage(module, found, (len(pairs), 2), torch.float64).tolist()]


def _score_row(module: Decoder, first: torch.Tensor, rest: torch.Tensor | None, row: int, then: list[int]) -> torch.Tensor:
    """(log-likelihood, greedy) of one continuation, float64 [2], from the hidden states that predict its tokens.

    One row at a time, so that logits of all rows never exist together.
    """
    h_TD = first[row : row + 1]
    if len(then) > 1:
        h_TD = torch.cat([h_TD, rest[row, : len(then) - 1]])
    logits_BTV = module.layers[-1](h_TD.unsqueeze(0))
    targets_BT = torch.tensor([then], device=h_TD.device)
    axis, start = module.blueprint.grid.tensor, local_vocabulary(module.blueprint)[0]
    losses, _ = cross_entropy.losses(logits_BTV[0], targets_BT[0] - start, axis, cross_entropy.passes(compiled=False))
    greedy = (_likeliest(logits_BTV[0], axis, start) == targets_BT[0]).all()
    return torch.stack([-losses.double().sum(), greedy.double()])


def _likeliest(logits_TV: torch.Tensor, axis: Axis, start: int) -> torch.Tensor:
    """The token with the largest logit, int64 [T], over the vocabulary of all tensor ranks."""
    if axis.size == 1:
        return logits_TV.argmax(-1)
    largest = torch.full((len(logits_TV), 1), float("-inf"), device=logits_TV.device)
    token = torch.zeros_like(largest, dtype=torch.int64)
    if logits_TV.shape[1]:
        value, index = logits_TV.float().max(-1, keepdim=True)
        largest, token = value, index + start
    values, tokens = all_gather(largest, axis, -1), all_gather(token, axis, -1)
    return tokens.gather(1, values.argmax(-1, keepdim=True)).squeeze(1)
