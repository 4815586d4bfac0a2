"""Model FLOPs: the arithmetic that the equations ask for, whatever the implementation recomputes or pads."""

from megatron_ngpt.config.recipe import Model

PASSES = 3  # one forward, and twice its products in backward: for the inputs' gradients and for the weights'


def flops_per_token(model: Model, vocab: int) -> int:
    """FLOPs to train on one token, of an nGPT or a GPT alike; a multiplication and its addition count as two.

    With d = hidden, H query heads, G key/value heads of size k, f = feed-forward size, T = context, V = `vocab` (without
    padding), a token's forward pass costs

        layers · [ 2·d·k·(H + 2G) + 2·H·k·d + 3·2·d·f  +  2·2·H·k·(T + 1)/2 ]  +  2·d·V

    that is 2 a weight of every matrix it passes (the input embedding is a look-up), and per head a product with the
    keys and one with the values of the (T + 1)/2 positions that a token of a causal window sees on average. Norms, scales,
    softmax and the optimiser are left out, as is customary. Training costs three times the forward pass; recomputed
    activations are not counted.
    """
    d, k = model.hidden, model.head_size
    attention_matrices = 2 * d * k * (model.heads + 2 * model.groups) + 2 * model.heads * k * d
    attention_products = 2 * model.heads * k * (model.context + 1)
    feed_forward = 3 * 2 * d * model.ffn_size
    return PASSES * (model.layers * (attention_matrices + attention_products + feed_forward) + 2 * d * vocab)
