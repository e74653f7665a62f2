"""Random numbers of CountSketch: functions of a seed, a block's name and an index, the same on every platform."""

from __future__ import annotations

import hashlib
from math import isqrt
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

SIGNS = 4  # Length of the sign vector in chunks. Chunks that share signs make the errors of constant blocks larger.

Integers = TypeVar("Integers", int, Tensor)


class BlockHash(NamedTuple):
    """Random numbers of one block.

    Attributes:
        name: Name of the block.
        m: Number of buckets, which is also the length of a row.
        size: Entries of a chunk, a multiple of m.
        step: Distance in the sign vector between the positions at which consecutive chunks begin.
        span: Number of positions at which a chunk can begin: a multiple of m, so that no two of m consecutive chunks
            begin at positions congruent modulo m.
        signs: One more sign for each chunk.
    """

    name: str
    m: int
    size: int
    step: int
    span: int
    signs: list[int]

    def begin(self, chunk: Integers) -> Integers:
        """Return the position in the sign vector at which the signs of a chunk begin."""
        return (chunk + 1) * self.step % self.span


def block_hash(seed: int, name: str, primes: list[int], chunk: int, chunks: int) -> BlockHash:
    """Draw the random numbers of a block.

    Args:
        seed: Seed of the sketch.
        name: Name of the block.
        primes: Numbers of buckets to choose from.
        chunk: Largest size of a chunk, in entries.
        chunks: Number of chunks that need a sign.
    """
    first, second = map(int, random_words(seed, f"block:{name}", 2))
    m = primes[first % len(primes)]
    span = (SIGNS - 1) * chunk // m * m
    step = 1 + second % (span - 1)
    signs = random_signs(seed, f"chunks:{name}", chunks)
    return BlockHash(name, m, chunk // m * m, step + (step % m == 0), span, signs.tolist())


def random_words(seed: int, purpose: str, count: int) -> np.ndarray:
    """Return random 64-bit words; word i depends on (seed, purpose, i) alone."""
    digest = hashlib.blake2b(purpose.encode(), key=str(seed).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)


def random_signs(seed: int, purpose: str, count: int) -> np.ndarray:
    """Return the bits of random words as 1 and -1, int8; sign i depends on (seed, purpose, i) alone."""
    words = random_words(seed, purpose, -(-count // 64))
    return 1 - 2 * np.unpackbits(words.astype("<u8").view(np.uint8), count=count).view(np.int8)


def primes_between(low: int, high: int) -> list[int]:
    """Return the primes p with low < p <= high in descending order; if there are none, the largest one below, or 1."""
    primes: list[int] = []
    for n in range(high, 1, -1):
        if primes and n <= low:
            break
        if all(n % divisor for divisor in range(2, isqrt(n) + 1)):
            primes.append(n)
    return primes or [1]
