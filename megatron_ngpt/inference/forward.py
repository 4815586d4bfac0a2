"""A batch through the model, with or without a cache, whatever the layout."""

import torch

from megatron_ngpt.inference.cache import KeyValueCache
from megatron_ngpt.inference.ranks import through_stages, whole_vocabulary
from megatron_ngpt.model.blocks import Block
from megatron_ngpt.model.decoder import Decoder, run_layers
from megatron_ngpt.model.ends import Head
from megatron_ngpt.model.window import window_of


def pad(rows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as one tensor int64 [B, T], zeros behind the shorter ones, and their lengths, int64 [B] on the CPU."""
    counts = torch.tensor([len(row) for row in rows])
    longest = int(counts.max())
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device), counts


def extend(module: Decoder, cache: KeyValueCache, tokens_BT: torch.Tensor, counts: torch.Tensor) -> torch.Tensor | None:
    """The hidden states [B, T, D] after the last block, on the ranks of the last stage; None on the others.

    Each row's first `counts` tokens (int64 [B], on the CPU) follow those in the cache; what is behind them is padding.
    """
    window = cache.extend(tokens_BT.shape[1])

    def run(state: torch.Tensor) -> torch.Tensor:
        pasts = iter(cache.layers)
        for layer in module.layers:
            if isinstance(layer, Block):
                state = layer.step(state, window, next(pasts))
            elif not isinstance(layer, Head):
                state = layer(state)
        return state

    h_BTD = through_stages(module, tokens_BT, run)
    cache.settle(counts)
    return h_BTD


def next_logits(module: Decoder, h_BTD: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] of the token after each row's last, from what `extend` returned on the ranks of the last stage."""
    last = (counts - 1).to(h_BTD.device)
    rows = torch.arange(len(counts), device=h_BTD.device)
    return whole_vocabulary(module, module.layers[-1](h_BTD[rows, last].unsqueeze(1))[:, 0])


def token_losses(
    module: Decoder, tokens_BT: torch.Tensor, targets_BT: torch.Tensor, documents_BT: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Each token's loss, nats, fp32 [B, T], on the last stage, None on the others; of this context rank's tokens.

    `documents` (of the whole sequence) are kept apart.
    """
    window = window_of(module.blueprint, tokens_BT.shape[1], documents_BT, module)
    *body, last = module.layers

    def run(x: torch.Tensor) -> torch.Tensor:
        if isinstance(last, Head):
            return last.token_losses(run_layers(body, x, window), targets_BT)
        return run_layers(module.layers, x, window)

    return through_stages(module, tokens_BT, run)
