"""The random numbers of training in plain whole numbers, one at a time, to compare the vectorised ones with.

SplitMix64 as published (Steele, Lea, Flood 2014): the state grows by a constant, its finaliser is the output.
"""

MASK = 2**64 - 1
SHARDS, COPIES, SHUFFLE, CROP, MASKS, MIXTURE, REPLACEMENT, VALIDATION = 1, 2, 3, 4, 5, 6, 7, 8


def finalised(state: int) -> int:
    state ^= state >> 30
    state = state * 0xBF58476D1CE4E5B9 & MASK
    state ^= state >> 27
    state = state * 0x94D049BB133111EB & MASK
    return state ^ state >> 31


def bits(key: int, counter: int) -> int:
    """The output number `counter` (from 0) of the generator seeded with `key`."""
    return finalised((key + (counter + 1) * 0x9E3779B97F4A7C15) & MASK)


def key(*parts: int) -> int:
    """Each part is added to the state before one more step."""
    state = 0
    for part in parts:
        state = bits((state + part) & MASK, 0)
    return state


def uniform(key: int, counter: int) -> float:
    return (bits(key, counter) // 2**11) / 2**53


def below(bound: int, share: float) -> int:
    return int(share * bound)
