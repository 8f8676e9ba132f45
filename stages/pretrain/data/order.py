"""The order of training: a pure function of (fingerprint, seed, epoch) and the shards' sizes and weights.

Samples are shuffled in windows of `window_shards` shuffled shards, so that a reader has few files open. Any
place costs one window. S shards, W samples of a window."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stages.pretrain.data import counter_rng

_WINDOWS = 3  # kept: a global batch may reach over a border, and workers take turns


@dataclass(frozen=True)
class Shards:
    """A sample is one crop of one segment."""

    fingerprint: str  # hexadecimal
    samples_S: np.ndarray  # int64: samples of one pass over each shard
    corpus_S: np.ndarray  # int: which of `weights` is the shard's
    # passes over a corpus in one epoch; 0.5 takes half of it, chosen anew each epoch
    weights: tuple[float, ...]
    window_shards: int

    @property
    def samples_per_epoch(self) -> int:
        """The same in every epoch: for each corpus floor(samples · weight)."""
        samples = (self.samples_S[self.corpus_S == c].sum() for c in range(len(self.weights)))
        return sum(int(_whole(s, w)) for s, w in zip(samples, self.weights, strict=True))


def _whole(samples: np.ndarray | int, weight: float) -> np.ndarray:
    """floor(samples · weight), forgiving the rounding of a product that should be whole."""
    return np.floor(np.asarray(samples, dtype=np.float64) * weight + 1e-6).astype(np.int64)


class Epoch:
    def __init__(self, shards: Shards, seed: int, epoch: int):
        self._shards, self._key = shards, (int(shards.fingerprint[:16], 16), seed, epoch)
        self._shuffled_S = counter_rng.permutation(len(shards.samples_S), counter_rng.SHARDS, *self._key)
        self._count_S = self._counts()
        ends_S, size = np.cumsum(self._count_S), shards.window_shards
        self._ends = np.append(ends_S[size - 1 :: size], ends_S[-1:])  # of windows, in samples
        self._window = lru_cache(_WINDOWS)(self._make_window)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _counts(self) -> np.ndarray:
        """Samples of each shuffled shard: the running total of a corpus is floor(samples · weight)."""
        shards, shuffled_S = self._shards, self._shuffled_S
        count_S = np.zeros_like(shuffled_S)
        for corpus, weight in enumerate(shards.weights):
            own = shards.corpus_S[shuffled_S] == corpus
            totals = _whole(np.cumsum(shards.samples_S[shuffled_S[own]]), weight)
            count_S[own] = np.diff(totals, prepend=0)
        return count_S

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 (count,) twice: the shard at these positions, and the number of the sample in one pass over
        it."""
        assert first >= 0 and first + count <= len(self), f"{first} + {count} of {len(self)}"
        parts = [np.zeros(0, dtype=np.int64)]
        while count:
            window = int(np.searchsorted(self._ends, first, side="right"))
            begin = int(self._ends[window - 1]) if window else 0
            parts.append(self._window(window)[first - begin : first - begin + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        packed = np.concatenate(parts)
        return packed >> 32, packed & 0xFFFFFFFF

    def _make_window(self, window: int) -> np.ndarray:
        """int64 (W,): shard · 2**32 + number, shuffled."""
        size = self._shards.window_shards
        places = range(window * size, min((window + 1) * size, len(self._shuffled_S)))
        packed_W = np.concatenate([self._numbers(place) for place in places])
        return packed_W[counter_rng.permutation(len(packed_W), counter_rng.SHUFFLE, *self._key, window)]

    def _numbers(self, place: int) -> np.ndarray:
        """Whole passes over one shard, and a rest drawn without replacement."""
        shard, count = int(self._shuffled_S[place]), int(self._count_S[place])
        samples = int(self._shards.samples_S[shard])
        passes, rest = divmod(count, samples) if count else (0, 0)
        numbers = np.tile(np.arange(samples), passes)
        if rest:
            drawn = counter_rng.permutation(samples, counter_rng.COPIES, *self._key, shard)
            numbers = np.append(numbers, drawn[:rest])
        return numbers | (shard << 32)
