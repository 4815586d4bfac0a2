"""Parameters and model FLOPs: the arithmetic that the equations ask for, whatever the implementation recomputes or pads."""

from megatron_ngpt.config.parameters import parameter_table
from megatron_ngpt.config.recipe import Model

PASSES = 3  # one forward, and twice its products in backward: for the inputs' gradients and for the weights'


def parameters(model: Model, vocabulary: int) -> int:
    """Parameters of the whole model with `vocabulary` entries, without padding."""
    return sum(record.size for record in parameter_table(model, vocabulary).values())


def checkpoint_bytes(model: Model, vocabulary: int) -> int:
    """Bytes of a checkpoint: weights and two moments in fp32."""
    return 12 * parameters(model, vocabulary)


def products_per_token(model: Model, vocabulary: int) -> list[int]:
    """Multiplications of matrix products that a token costs in a forward pass, by layer: embedding, blocks, head.

    One for each entry of every matrix that it passes (the input embedding is a look-up), and in every block, per query head, a product
    with the keys and one with the values of the (context + 1) / 2 positions that a token of a causal window sees on average. Norms,
    scales, softmax and the optimiser are left out, as is customary.
    """
    attention = model.heads * model.head_size * (model.context + 1)
    found = [0, *[attention] * model.layers, 0]
    for record in parameter_table(model, vocabulary).values():
        if record.kind == "matrix" and record.layer > 0:
            found[record.layer] += record.size
    return found


def flops_per_token(model: Model, vocabulary: int) -> int:
    """FLOPs to train on one token, of an nGPT or a GPT alike; a multiplication and its addition count as two.

    Training costs three times the forward pass; recomputed activations are not counted.
    """
    return 2 * PASSES * sum(products_per_token(model, vocabulary))
