"""What no step of a size can be faster than: its products and its attention, each alone and at its own shape."""

import torch
import torch.nn.functional as F

from benchmarks.peers import Size


class Floor:
    """The three products of every weight, and causal attention forward and backward, on numbers that are there already.

    Tokens N = sequences × context; weights [O, D] of distinct memory, as a model's are.
    """

    def __init__(self, size: Size, dtype: torch.dtype):
        tokens, hidden, wide = size.sequences * size.context, size.hidden, 4 * size.hidden
        shapes = size.layers * [*4 * [(hidden, hidden)], (wide, hidden), (wide, hidden), (hidden, wide)] + [(size.vocabulary, hidden)]
        made: dict[int, torch.Tensor] = {}

        def activations(width: int) -> torch.Tensor:
            return made.setdefault(width, torch.randn(tokens, width).to(dtype))

        self.products = [(activations(n), torch.randn(m, n).mul(n**-0.5).to(dtype), activations(m)) for m, n in shapes]
        heads = (size.sequences, size.heads, size.context, hidden // size.heads)
        self.qkv = [torch.randn(heads).to(dtype).requires_grad_() for _ in range(3)]
        self.grad = torch.randn(heads).to(dtype)
        self.layers = size.layers

    def step(self) -> None:
        """All of them once."""
        for x_ND, weight_OD, grad_NO in self.products:
            F.linear(x_ND, weight_OD)
            grad_NO @ weight_OD
            grad_NO.t() @ x_ND
        for _ in range(self.layers):
            torch.autograd.grad(F.scaled_dot_product_attention(*self.qkv, is_causal=True), self.qkv, self.grad)
