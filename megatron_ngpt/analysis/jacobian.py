"""Largest and smallest singular values of a network's Jacobians, by Golub-Kahan bidiagonalisation: products alone, no matrix.

What k steps know: the singular values of J on a space of k directions. So the largest found never exceeds the true one and the smallest
never falls below it, and their ratio is a lower bound of the condition number, which grows with the steps. The largest is right to a
few digits after some ten steps. The smallest, which lies among many others, converges slowly, and is exact when the steps
reach the number of dimensions. Every direction is orthogonalised against all before it, or rounding would return old ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.function import Network

Move = Callable[[torch.Tensor], torch.Tensor]
EXHAUSTED = 1e-6  # of the largest entry, in fp32: no direction is left


@dataclass(frozen=True)
class Extremes:
    """Of the Jacobian of block `block` (None: of all blocks, from the embedding to the last hidden state).

    Attributes:
        largest: a lower bound of the largest singular value.
        smallest: an upper bound of the smallest one.
        steps: directions that were taken.
        exact: they were all there are.
    """

    block: int | None
    largest: float
    smallest: float
    steps: int
    exact: bool

    @property
    def condition(self) -> float:
        """A lower bound of the condition number."""
        return self.largest / self.smallest if self.smallest > 0 else float("inf")


def extremes(network: Network, block: int | None, steps: int) -> Extremes:
    """Of one block's Jacobian at its hidden state, or of all blocks'."""
    numbers = range(network.weights.model.layers) if block is None else range(block, block + 1)
    first, last = numbers.start, numbers.stop
    generator = torch.Generator().manual_seed(0)
    start = network.tangent(torch.randn(network.states[first].shape, generator=generator), first)
    values = golub_kahan(
        lambda v: network.push(v, numbers),
        lambda u: network.pull(u, numbers),
        (lambda v: network.tangent(v, first), lambda u: network.tangent(u, last)),
        start,
        min(steps, network.size),
    )
    return Extremes(block, float(values[0]), float(values[-1]), len(values), len(values) == network.size)


def golub_kahan(push: Move, pull: Move, tangents: tuple[Move, Move], start: torch.Tensor, steps: int) -> np.ndarray:
    """Singular values of an operator on the space of `steps` directions that grows from `start`, falling, float64 [≤ steps].

    Fewer where the directions run out. `tangents` bring inputs and outputs, in float64, back to the spaces they live in: rounding that
    leads out of them is small beside a product, and not beside what orthogonalisation leaves of it.
    """
    (inside, outside), like = tangents, start
    rights, lefts = [inside(start.double()).flatten()], []
    rights[0] /= rights[0].norm()
    diagonal, beside = [], []
    for step in range(steps):
        left = _orthogonal(push(rights[-1].to(like.dtype).view_as(like)), lefts, outside)
        diagonal.append(left.norm().item())
        lefts.append(left / max(diagonal[-1], 1e-300))
        if step + 1 == steps or diagonal[-1] <= EXHAUSTED * max(diagonal):
            break
        right = _orthogonal(pull(lefts[-1].to(like.dtype).view_as(like)), rights, inside)
        if right.norm().item() <= EXHAUSTED * max(diagonal):
            break
        beside.append(right.norm().item())
        rights.append(right / beside[-1])
    bidiagonal = np.diag(diagonal) + np.diag(beside[: len(diagonal) - 1], 1)
    return np.linalg.svd(bidiagonal, compute_uv=False)


def _orthogonal(product: torch.Tensor, others: list[torch.Tensor], tangent: Move) -> torch.Tensor:
    """Without its parts along `others`, flat float64, thrice: each time leaves less of what rounding returns."""
    vector = product.double().flatten()
    for _ in range(3):
        if others:
            basis = torch.stack(others)
            vector = vector - basis.t() @ (basis @ vector)
        vector = tangent(vector.view_as(product)).flatten()
    return vector
