"""Which dataset each sample of a blend comes from: one cyclic pattern, so that any sample is a look-up.

Weights are rounded to 1/65,536. The pattern is the chairman assignment (R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32, 1980): after every prefix each of n datasets is within 1 − 1/(2n − 2) < 1 sample of its share.
"""

import heapq
import math
from fractions import Fraction

import numpy as np

GRAIN = 65536


def rounded_weights(weights: list[float]) -> list[int]:
    """Weights as whole 65,536ths that sum to 65,536: largest remainders get the rest, and none falls to zero."""
    if not 1 <= len(weights) <= GRAIN:
        raise ValueError(f"{len(weights)} datasets; a blend takes 1 to {GRAIN}")
    total = sum(map(Fraction, weights))
    shares = [Fraction(weight) * GRAIN / total for weight in weights]
    counts = [max(1, math.floor(share)) for share in shares]
    by_rest = sorted(range(len(weights)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_rest[: max(0, GRAIN - sum(counts))]:
        counts[i] += 1
    while sum(counts) > GRAIN:                       # tiny weights were raised to 1: the most favoured ones pay
        counts[max(range(len(counts)), key=lambda i: (counts[i] > 1, counts[i] - shares[i]))] -= 1
    return counts


def chairman_pattern(counts: list[int]) -> np.ndarray:
    """The dataset of each sample of one cycle, uint16 [sum of counts], dataset i appearing counts[i] times.

    Job j of dataset i may run from slot ⌈T (j − 1 + δ) / count⌉ to slot ⌊T (j − δ) / count⌋, δ = 1/(2n − 2), T the sum;
    Tijdeman proved that all jobs fit, and the earliest deadline first then fits them.
    """
    total, n = sum(counts), len(counts)
    if n == 1:
        return np.zeros(total, np.uint16)
    grain = 2 * n - 2
    dataset = np.repeat(np.arange(n), counts)
    job = np.concatenate([np.arange(1, count + 1) for count in counts])
    share = grain * np.repeat(np.array(counts), counts)
    release = -(-(total * (grain * (job - 1) + 1)) // share)
    deadline = (total * (grain * job - 1)) // share
    rank = (deadline * n + dataset).tolist()
    order = np.argsort(release, kind="stable").tolist()
    release = release.tolist()
    waiting, pattern, at = [], [], 0
    for slot in range(1, total + 1):
        while at < total and release[order[at]] <= slot:
            heapq.heappush(waiting, rank[order[at]])
            at += 1
        pattern.append(heapq.heappop(waiting) % n)
    return np.array(pattern, np.uint16)


class Blend:
    """Deals sample numbers 0, 1, 2, ... out to datasets by weight. `counts` are the rounded weights in 65,536ths."""

    def __init__(self, weights: list[float]):
        self.counts = rounded_weights(weights)
        divisor = math.gcd(*self.counts)
        self._cycle = np.array([count // divisor for count in self.counts])
        self._pattern = chairman_pattern(self._cycle.tolist())
        by_dataset = np.argsort(self._pattern, kind="stable")
        firsts = np.concatenate([[0], np.cumsum(self._cycle)[:-1]])
        self._rank = np.empty(len(self._pattern), np.int64)
        self._rank[by_dataset] = np.arange(len(self._pattern)) - np.repeat(firsts, self._cycle)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(dataset, number of the sample within that dataset), each shaped like `samples` (int64, from 0)."""
        cycles, places = np.divmod(samples, len(self._pattern))
        datasets = self._pattern[places].astype(np.int64)
        return datasets, cycles * self._cycle[datasets] + self._rank[places]

    def dealt(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each dataset has."""
        cycles, rest = divmod(samples, len(self._pattern))
        begun = np.bincount(self._pattern[:rest], minlength=len(self._cycle))
        return (cycles * self._cycle + begun).tolist()
