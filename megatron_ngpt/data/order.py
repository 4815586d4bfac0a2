"""The order of samples without shuffle files: a keyed pseudo-random permutation, evaluated where it is asked for.

A Feistel network permutes all numbers of b bits; a number that lands outside [0, size) is put through it again until it lands
inside (cycle walking), which permutes [0, size) itself. Size is at least half of 2^b, so fewer than two rounds trips are needed
on average. Time and memory do not depend on the size.
"""

import hashlib

import numpy as np

ROUNDS = 8
_MULTIPLY = np.uint64(0x9E3779B97F4A7C15)       # 2^64 / golden ratio, odd: a good multiplicative mixer
_FOLD = np.uint64(32)
_TOP = 64


def derived_numbers(*key: int | str) -> np.ndarray:
    """Eight pseudo-random uint64 that depend on the whole key, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


class Permutation:
    """A pseudo-random permutation of [0, size) that depends on `key`; calling it maps an array of numbers."""

    def __init__(self, size: int, *key: int | str):
        if size < 1:
            raise ValueError(f"size {size}: there is nothing to permute")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._left, self._right = bits // 2, bits - bits // 2
        self._keys = derived_numbers(*key)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Map numbers in [0, size), int64 of any shape; equal numbers map to equal ones, different ones to different ones."""
        values = self._shuffle(numbers.astype(np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._shuffle(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _shuffle(self, values: np.ndarray) -> np.ndarray:
        left_bits, right_bits = np.uint64(self._left), np.uint64(self._right)
        left, right = values >> right_bits, values & ((np.uint64(1) << right_bits) - np.uint64(1))
        for turn, key in enumerate(self._keys):
            if turn % 2:
                right = right ^ _mix(left, key, self._right)
            else:
                left = left ^ _mix(right, key, self._left)
        return (left << right_bits) | right if left_bits else right


def _mix(values: np.ndarray, key: np.uint64, bits: int) -> np.ndarray:
    """A keyed hash of each value, the uppermost `bits` of 64 (products wrap, as wanted)."""
    hashed = (values + key) * _MULTIPLY
    hashed ^= hashed >> _FOLD
    hashed *= _MULTIPLY
    return hashed >> np.uint64(_TOP - bits)
