"""The keyed permutation is one, for every size, and depends on its key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.order import Permutation


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 5000), key=st.integers(0, 2**40))
def test_it_is_a_permutation(size, key):
    assert np.array_equal(np.sort(Permutation(size, key)(np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [2**31 + 11, 2**40 + 1, 2**62])
def test_large_sizes_stay_inside_and_injective(size):
    numbers = np.concatenate([np.arange(20000), size - 1 - np.arange(20000)])
    mapped = Permutation(size, "large")(numbers)
    assert mapped.min() >= 0 and mapped.max() < size and len(np.unique(mapped)) == len(numbers)


def test_equal_keys_agree_and_other_keys_do_not():
    numbers = np.arange(1000)
    first = Permutation(1000, "order", 1, 0, 0)(numbers)
    assert np.array_equal(first, Permutation(1000, "order", 1, 0, 0)(numbers))
    for other in (("order", 2, 0, 0), ("order", 1, 1, 0), ("order", 1, 0, 1)):
        assert (Permutation(1000, *other)(numbers) == first).mean() < 0.02


def test_places_are_spread_evenly():
    """Chi-squared of where 64 neighbours go, over many keys: 8 × 8 cells, 63 degrees of freedom, 1 in 10,000 above 115."""
    counts = np.zeros((8, 8))
    for key in range(800):
        mapped = Permutation(64, "even", key)(np.arange(64))
        np.add.at(counts, (np.arange(64) // 8, mapped // 8), 1)
    expected = 800 * 64 / 64
    assert ((counts - expected) ** 2 / expected).sum() < 115


def test_shapes_and_nothing_to_permute():
    assert Permutation(10, 0)(np.zeros((2, 3), np.int64)).shape == (2, 3)
    with pytest.raises(ValueError, match="nothing to permute"):
        Permutation(0, 0)
