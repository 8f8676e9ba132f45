"""Random numbers that are a function of what they are for: SplitMix64's output (Steele, Lea, Flood 2014) of a
key and a counter, modulo 2**64. So any can be had alone, on any rank, in any worker, in any order."""

import numpy as np

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1

# of every rule below: raise it when the same seed would give another order, crop, mask or mixture
VERSION = 1

# What a number is for. Two uses never share a stream.
SHARDS, COPIES, SHUFFLE, CROP, MASK, MIXTURE, REPLACEMENT, VALIDATION = range(1, 9)


def key(*parts: int) -> int:
    """64 bits of whole numbers, in this order: purpose, seed, epoch, …"""
    state = 0
    for part in parts:  # as `bits`, in plain whole numbers, which are faster one at a time
        state = (state + _GOLDEN + part) & _MASK
        state = ((state ^ state >> 30) * _FIRST) & _MASK
        state = ((state ^ state >> 27) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def bits(key: np.ndarray | int, counters: np.ndarray | int) -> np.ndarray:
    """uint64: the numbers at these counters of each key's stream, broadcast together."""
    counted = np.asarray(counters).astype(np.uint64)
    with np.errstate(over="ignore"):  # of scalars: arrays wrap without a warning
        found = np.array(np.asarray(key, dtype=np.uint64) + (counted + np.uint64(1)) * np.uint64(_GOLDEN))
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            found ^= found >> np.uint64(shift)
            found *= np.uint64(factor)
        found ^= found >> np.uint64(31)
    return found


keys = bits  # a key for each number, for example a position


def uniform(key: np.ndarray | int, counters: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1), in steps of 2**-53."""
    return (bits(key, counters) >> np.uint64(11)) * 2.0**-53


def below(bound: np.ndarray | int, share: np.ndarray) -> np.ndarray:
    """int64 in [0, bound) of uniform numbers; bound below 2**53."""
    return np.minimum((share * bound).astype(np.int64), np.asarray(bound) - 1)


def permutation(count: int, *parts: int) -> np.ndarray:
    """int64 (count,): 0 … count - 1 shuffled, a function of `parts`."""
    return np.argsort(bits(key(*parts), np.arange(count)), kind="stable")
