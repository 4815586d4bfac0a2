"""The worst of several errors."""

from collections.abc import Iterable

import numpy as np


def worst(errors: Iterable[float]) -> float:
    """The largest, and NaN where any is NaN, which Python's `max` passes over unless it comes first."""
    return float(np.max([float(error) for error in errors]))
