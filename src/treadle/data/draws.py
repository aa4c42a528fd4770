"""Random numbers with an address.

Every random number of order and augmentation is a pure function of (seed, epoch, sample, stream):
no generator is advanced, so nothing depends on what was drawn before, on the batch that a sample
is in, on the number of workers, or on where a run was resumed.

The seed, the epoch and the stream's name are hashed to a key (BLAKE2b); the key and the sample's
index start a SplitMix64 sequence (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195)
whose n-th member is computed directly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Draws", "bits", "mixed", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: SplitMix64's stride


def uniform(
    seed: int, epoch: int, samples: ArrayLike, stream: str, n: int = 1
) -> NDArray[np.float64]:
    """`n` numbers in [0, 1) for each of `samples` (indices, shape (B,)): float64 of shape (B, n).

    >>> both = uniform(seed=1, epoch=0, samples=[7, 8], stream="flip", n=2)
    >>> alone = uniform(seed=1, epoch=0, samples=[8], stream="flip", n=2)
    >>> both.shape, bool((both[1] == alone[0]).all())
    ((2, 2), True)
    """
    whole = bits(seed, epoch, samples, stream, n) >> np.uint64(11)  # as many as a float64 holds
    return whole.astype(np.float64) * 2.0**-53


def bits(seed: int, epoch: int, samples: ArrayLike, stream: str, n: int) -> NDArray[np.uint64]:
    """`n` numbers of 64 random bits for each of `samples`: uint64 of shape (B, n)."""
    start = mixed(np.asarray(samples, dtype=np.int64).astype(np.uint64), _key(seed, epoch, stream))
    return mixed(np.arange(1, n + 1, dtype=np.uint64), start[:, None])


def mixed(index: NDArray[np.uint64], key: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The members of the sequences that begin at `key` with the numbers `index`."""
    return _mix(key + index * _GOLDEN)


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of some samples: an address without the last part, the stream.

    `samples` are indices into the data set, int64 of shape (B,). A pipeline gives each transform
    its own stream by `named`; a transform asks for `uniform(n)`.
    """

    seed: int
    epoch: int
    samples: NDArray[np.int64]
    stream: str = ""

    def named(self, stream: str) -> Draws:
        """The draws of the same samples from another stream."""
        return replace(self, stream=stream)

    def at(self, place: int) -> Draws:
        """The draws of one of the samples, by its place among them."""
        return replace(self, samples=self.samples[place : place + 1])

    def uniform(self, n: int = 1, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """`n` numbers in [low, high) for each sample: float64 of shape (B, n)."""
        return low + (high - low) * uniform(self.seed, self.epoch, self.samples, self.stream, n)

    def __len__(self) -> int:
        return len(self.samples)


@lru_cache(maxsize=1024)
def _key(seed: int, epoch: int, stream: str) -> np.uint64:
    digest = blake2b(f"{seed} {epoch} {stream}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64 bits in which each bit depends on every other."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
