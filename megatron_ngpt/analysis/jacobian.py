"""Largest and smallest singular values of a network's Jacobians, by Golub-Kahan bidiagonalisation: products alone, no matrix.

What k steps know: the singular values of J on a space of k directions. So the largest found never exceeds the true one and the smallest
never falls below it, and their ratio is a lower bound of the condition number, which grows with the steps. Of each, a residual says how
near a true singular value is; the steps end when both residuals are small. The largest is right after some ten steps. The smallest, which
lies among many others, converges slowly, and is exact when the steps reach the number of dimensions. Every direction is
orthogonalised against all before it, or rounding would return old ones. Products are fp32: below 1e-6 of the largest is rounding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from megatron_ngpt.analysis.function import Network

Move = Callable[[torch.Tensor], torch.Tensor]
EXHAUSTED = 1e-6  # of the largest entry, in fp32: no direction is left
NEAR = 0.01  # of a value: a residual that is small
LOOK = 5  # steps between two looks at the residuals


@dataclass(frozen=True)
class Extremes:
    """Of the Jacobian of block `block` (None: of all blocks, from the embedding to the last hidden state).

    Attributes:
        largest: a lower bound of the largest singular value.
        smallest: an upper bound of the smallest one.
        largest_residual, smallest_residual: a true singular value is as near as this to `largest`, `smallest`.
        steps: directions that were taken.
        exact: they were all there are.
    """

    block: int | None
    largest: float
    smallest: float
    largest_residual: float
    smallest_residual: float
    steps: int
    exact: bool

    @property
    def condition(self) -> float:
        """A lower bound of the condition number."""
        return self.largest / self.smallest if self.smallest > 0 else float("inf")

    @property
    def largest_known(self) -> bool:
        """`largest` is within `NEAR` of a true singular value."""
        return self.exact or self.largest_residual <= NEAR * self.largest

    @property
    def smallest_known(self) -> bool:
        """`smallest` is within `NEAR` of a true singular value."""
        return self.exact or self.smallest_residual <= NEAR * self.smallest

    @property
    def converged(self) -> bool:
        """Both are known."""
        return self.largest_known and self.smallest_known


def extremes(network: Network, block: int | None, steps: int) -> Extremes:
    """Of one block's Jacobian at its hidden state, or of all blocks', in at most `steps` directions; fewer where they suffice."""
    numbers = range(network.weights.model.layers) if block is None else range(block, block + 1)
    first, last = numbers.start, numbers.stop
    generator = torch.Generator().manual_seed(0)
    start = network.tangent(torch.randn(network.states[first].shape, generator=generator), first)
    growing = golub_kahan(
        lambda v: network.push(v, numbers),
        lambda u: network.pull(u, numbers),
        (lambda v: network.tangent(v, first), lambda u: network.tangent(u, last)),
        start,
    )
    return last_of(block, growing, network.size, min(steps, network.size))


def last_of(block: int | None, growing: Iterator[tuple[list[float], list[float]]], size: int, steps: int) -> Extremes:
    """What is known of a map of `size` dimensions when both values are near true ones, or after `steps`, or when no direction is left."""
    for diagonal, beside in growing:
        taken, ends = len(diagonal), beside[-1] == 0
        if ends or taken >= steps or taken % LOOK == 0:
            found = _values(block, diagonal, beside, ends or taken == size)
            if ends or taken >= steps or found.converged:
                break
    return found


def golub_kahan(push: Move, pull: Move, tangents: tuple[Move, Move], start: torch.Tensor) -> Iterator[tuple[list[float], list[float]]]:
    """After each step the bidiagonal matrix of an operator on the directions so far, which grow from `start`: its diagonal, and the entries
    beside it, the last of which leads to the next direction: 0 where none is left, and then it ends.

    `tangents` bring inputs and outputs, in float64, back to the spaces they live in: rounding that leads out of them is small beside a
    product, and not beside what orthogonalisation leaves of it.
    """
    (inside, outside), like = tangents, start
    rights, lefts = [inside(start.double()).flatten()], []
    rights[0] /= rights[0].norm()
    diagonal, beside = [], []
    while not beside or beside[-1]:
        left = _orthogonal(push(rights[-1].to(like.dtype).view_as(like)), lefts, outside)
        diagonal.append(left.norm().item())
        lefts.append(left / max(diagonal[-1], 1e-300))
        least = EXHAUSTED * max(diagonal)
        right = _orthogonal(pull(lefts[-1].to(like.dtype).view_as(like)), rights, inside)
        beside.append(right.norm().item() if diagonal[-1] > least else 0.0)
        beside[-1] = beside[-1] if beside[-1] > least else 0.0
        yield diagonal, beside
        if beside[-1]:
            rights.append(right / beside[-1])


def _values(block: int | None, diagonal: list[float], beside: list[float], exact: bool) -> Extremes:
    lefts, values, _ = np.linalg.svd(np.diag(diagonal) + np.diag(beside[:-1], 1))
    residuals = beside[-1] * np.abs(lefts[-1])  # J v = σ u holds, and Jᵀ u misses σ v by what lies in the next direction
    return Extremes(block, *(float(x) for x in (values[0], values[-1], residuals[0], residuals[-1])), len(values), exact)


def _orthogonal(product: torch.Tensor, others: list[torch.Tensor], tangent: Move) -> torch.Tensor:
    """Without its parts along `others`, flat float64, thrice: each time leaves less of what rounding returns."""
    vector = product.double().flatten()
    for _ in range(3):
        if others:
            basis = torch.stack(others)
            vector = vector - basis.t() @ (basis @ vector)
        vector = tangent(vector.view_as(product)).flatten()
    return vector
