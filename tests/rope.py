"""The rotary embedding's frequencies once more, in numpy and float64, pair by pair, from the formulas of their papers."""

import math

import numpy as np


def frequencies(kind: str, size: int, base: float, factor: float = 1.0, original: int | None = None) -> np.ndarray:
    """Each pair's angle from one position to the next, [size / 2].

    linear (arXiv 2306.15595): positions divided. ntk: a base under which the last pair turns `factor` times slower and the first as
    before. yarn (arXiv 2309.00071, NTK by parts): pairs slower by `factor` where they turn seldom within the original context.
    """
    found = []
    for pair in range(size // 2):
        angle = base ** (-2 * pair / size)
        if kind == "linear":
            angle = angle / factor
        if kind == "ntk":
            angle = (base * factor ** (size / (size - 2))) ** (-2 * pair / size)
        if kind == "yarn":
            first = max(math.floor(turning(32, size, base, original)), 0)
            last = min(math.ceil(turning(1, size, base, original)), size - 1)
            last = last + 0.001 if first == last else last
            slow = min(max((pair - first) / (last - first), 0.0), 1.0)
            angle = slow * angle / factor + (1 - slow) * angle
        found.append(angle)
    return np.array(found)


def turning(times: float, size: int, base: float, length: int) -> float:
    """The pair, as a real number, whose angle turns `times` times within `length` positions: length · base^(−2i/size) = 2π · times."""
    return size / 2 * math.log(length / (2 * math.pi * times), base)


def sharpness(kind: str, factor: float) -> float:
    """What YaRN multiplies the scores by: 1/t with √(1/t) = 0.1 ln factor + 1."""
    return (0.1 * math.log(factor) + 1) ** 2 if kind == "yarn" else 1.0
