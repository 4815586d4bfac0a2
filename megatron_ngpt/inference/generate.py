"""`ngpt generate`: a model continues a prompt."""

import torch

from megatron_ngpt.inference.load import LoadedModel


def continue_text(loaded: LoadedModel, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int) -> str:
    """What the model writes after `prompt`, at most `max_tokens` tokens, up to the end of the document."""
    tokenizer = loaded.tokenizer()
    given = tokenizer.encode(prompt).tolist() or [tokenizer.eos_id]
    written = continue_tokens(loaded, given, max_tokens, temperature, top_p, seed, tokenizer.eos_id, tokenizer.size)
    before, whole = tokenizer.decode(given), tokenizer.decode(given + written)
    return whole.removeprefix(before) if whole.startswith(before) else tokenizer.decode(written)


@torch.no_grad()
def continue_tokens(
    loaded: LoadedModel, given: list[int], max_tokens: int, temperature: float, top_p: float, seed: int, eos: int, entries: int
) -> list[int]:
    """The ids that follow `given`, without `eos`, which ends them; ids of `entries` and beyond are never chosen.

    Beyond the model's context the model sees the last `context` tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor(given, device=loaded.device)
    for _ in range(max_tokens):
        logits = next_logits(loaded, tokens[-loaded.model.context :])[:entries]
        token = choose(logits.float().cpu(), temperature, top_p, generator)
        if token == eos:
            break
        tokens = torch.cat([tokens, tokens.new_tensor([token])])
    return tokens[len(given) :].tolist()


def next_logits(loaded: LoadedModel, tokens_T: torch.Tensor) -> torch.Tensor:
    """Logits [V] of the token after `tokens` [T]; the head computes the last position alone."""
    *layers, head = loaded.module.layers
    state = tokens_T.unsqueeze(0)
    for layer in layers:
        state = layer(state)
    return head(state[:, -1:])[0, 0]


def choose(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token drawn from softmax(logits / temperature), among the likeliest that together reach `top_p`; 0: the likeliest."""
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities, tokens = torch.softmax(logits_V.double() / temperature, 0).sort(descending=True, stable=True)
    before = probabilities.cumsum(0) - probabilities
    before[0] = -1  # the likeliest token always stays
    kept = torch.where(before < top_p, probabilities, 0)
    return int(tokens[torch.multinomial(kept, 1, generator=generator)])
