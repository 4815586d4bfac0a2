"""How the next token is chosen."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """Draw from softmax(logits / temperature), among the likeliest tokens that together reach `top_p`; temperature 0: the likeliest.

    `top_k`: only these many of the likeliest come into question at all; 0: every token.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    top_k: int = 0


def choose(logits_BV: torch.Tensor, sampling: Sampling, generators: list[torch.Generator]) -> torch.Tensor:
    """One token a row, int64 [B], from logits on the CPU; each row draws one number from its own generator.

    A number picks the same token whatever else is in the batch, and, as tokens lie in the order of their ids and not of their
    probabilities, rounding in the logits moves a boundary between two tokens by no more than itself.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.double()
    probabilities = torch.softmax((logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature, -1)
    if sampling.top_p < 1 or sampling.top_k:
        ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k:
            ranked[:, sampling.top_k :] = 0
            ranked /= ranked.sum(-1, keepdim=True)
        beyond = ranked.cumsum(-1) - ranked >= sampling.top_p
        beyond[:, 0] = False  # the likeliest token always stays
        probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked.masked_fill(beyond, 0))
    reached = probabilities.cumsum(-1)
    drawn = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    return torch.searchsorted(reached, drawn * reached[:, -1:], right=True).squeeze(-1)
