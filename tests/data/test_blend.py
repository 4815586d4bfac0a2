"""A blend never strays more than one sample from its weights, and any sample of it is a look-up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.blend import GRAIN, Blend, chairman_pattern, rounded_weights

weights_strategy = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


@settings(deadline=None, max_examples=25)
@given(weights=weights_strategy)
def test_every_prefix_is_within_one_sample(weights):
    blend = Blend(weights)
    datasets, numbers = blend.locate(np.arange(2 * GRAIN + 100))
    steps = np.arange(1, len(datasets) + 1)
    for dataset, count in enumerate(blend.counts):
        taken = np.cumsum(datasets == dataset)
        assert np.abs(taken * GRAIN - steps * count).max() < GRAIN
        assert np.array_equal(numbers[datasets == dataset], np.arange(taken[-1]))


@settings(deadline=None, max_examples=100)
@given(weights=weights_strategy)
def test_weights_are_rounded_to_the_nearest_grain(weights):
    counts = rounded_weights(weights)
    assert sum(counts) == GRAIN and min(counts) >= 1
    exact = np.array(weights) / sum(weights) * GRAIN
    if exact.min() >= 1:
        assert np.abs(np.array(counts) - exact).max() < 1 + 1e-6


@settings(deadline=None, max_examples=60)
@given(counts=st.lists(st.integers(1, 12), min_size=2, max_size=12))
def test_the_pattern_holds_each_dataset_as_often_as_it_weighs(counts):
    pattern, total, n = chairman_pattern(counts), sum(counts), len(counts)
    assert np.bincount(pattern, minlength=n).tolist() == counts
    for dataset, count in enumerate(counts):
        deviation = np.cumsum(pattern == dataset) * total - np.arange(1, total + 1) * count
        assert np.abs(deviation).max() * (2 * n - 2) <= total * (2 * n - 3)


def test_tiny_weights_are_kept_and_any_sample_is_found_alone():
    blend = Blend([1e9, 1e-9, 3e8])
    assert blend.counts[1] == 1
    samples = np.array([5, 2**40, 3 * GRAIN + 1])
    together = blend.locate(samples)
    assert [[int(v[0]) for v in blend.locate(samples[i : i + 1])] for i in range(3)] == np.stack(together, 1).tolist()


def test_no_datasets():
    with pytest.raises(ValueError, match="0 datasets"):
        Blend([])


@settings(deadline=None, max_examples=25)
@given(weights=weights_strategy, samples=st.integers(0, 3 * GRAIN))
def test_what_was_dealt_is_counted(weights, samples):
    blend = Blend(weights)
    datasets, _ = blend.locate(np.arange(samples))
    assert blend.dealt(samples) == np.bincount(datasets, minlength=len(weights)).tolist()
