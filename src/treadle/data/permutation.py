"""The order of an epoch without a generator: any part of it can be had without the rest.

Up to about a million samples get a random number each and are sorted by them: every order is as
likely as every other, and sorting them takes some milliseconds. Of more than that a place is
computed from its number alone, in constant time and memory, by a network of Feistel over two digits
(Black and Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9): a place is written as
`left * base + right`, and in six rounds each digit is moved on by a random function of the other.
The digits' bases are about the root of `n`, so that few places of theirs are beyond `n`; such a
place goes through the network once more, until it is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from treadle.data.draws import bits, mixed

__all__ = ["Indices", "permutation", "permuted"]

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

_SORTED = 1 << 20
"""So many samples at most are sorted."""

_ROUNDS = 6

_BLOCK = 1 << 14
"""So many keys at a time stay in the processor's cache."""


def permutation(seed: int, epoch: int, n: int) -> Indices:
    """The order of `n` samples in `epoch`: shape (n,), int64.

    >>> permutation(seed=3, epoch=0, n=4).tolist()
    [0, 3, 2, 1]
    """
    if n > _SORTED:
        at = permuted(seed, epoch, n)
        blocks = [np.arange(s, min(s + _BLOCK, n)) for s in range(0, n, _BLOCK)]
        return np.concatenate([at(block) for block in blocks])
    # Each sample gets a random number, in whose lowest bits its index takes place: sorting such
    # numbers is far quicker than sorting indices by them.
    low = np.uint64((1 << max(n - 1, 1).bit_length()) - 1)
    keys = np.empty(n, np.uint64)
    for start in range(0, n, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, n))
        drawn = bits(seed, epoch, block, "order", 1)[:, 0]
        keys[block[0] : block[-1] + 1] = (drawn & ~low) | block.astype(np.uint64)
    keys.sort()
    keys &= low
    return keys.view(np.int64)


def permuted(seed: int, epoch: int, n: int) -> Callable[[Indices], Indices]:
    """`permutation(seed, epoch, n)` as a function: of places in it, int64 of any shape, the samples
    that are there.

    >>> at = permuted(seed=3, epoch=0, n=10**12)
    >>> bool((at(np.arange(5, 7)) == at(np.arange(9))[5:7]).all())
    True
    """
    if n <= _SORTED:
        return permutation(seed, epoch, n).take
    return partial(_walked, n, _Network(seed, epoch, n))


class _Network:
    """A bijection of the numbers below `left * right`, which is `n` or a little more."""

    def __init__(self, seed: int, epoch: int, n: int) -> None:
        self.left = math.isqrt(n - 1) + 1
        self.right = -(-n // self.left)
        self.keys = bits(seed, epoch, [0], "rounds", _ROUNDS)[0]

    def __call__(self, at: Words) -> Words:
        left, right = np.divmod(at, np.uint64(self.right))
        for k in range(0, _ROUNDS, 2):
            _move_on(left, right, self.keys[k], self.left)
            _move_on(right, left, self.keys[k + 1], self.right)
        return left * np.uint64(self.right) + right


def _move_on(digit: Words, other: Words, key: np.uint64, base: int) -> None:
    """Add to `digit` a random function of the `other`, modulo `base`."""
    high = mixed(other, key) >> np.uint64(32)
    digit += (high * np.uint64(base)) >> np.uint64(32)  # below the base
    np.minimum(digit, digit - np.uint64(base), out=digit)  # what is below zero wraps around


def _walked(n: int, network: _Network, places: Indices) -> Indices:
    at = network(np.asarray(places, np.int64).astype(np.uint64))
    while (beyond := at >= n).any():
        at[beyond] = network(at[beyond])
    return at.view(np.int64)
