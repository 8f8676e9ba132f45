"""The order of training: a pure function of (fingerprint, seed, epoch) and the shards' sizes and weights.

Shards are permuted; runs of `window_shards` neighbours are windows, and samples are shuffled inside a window,
so that a reader has few files open. Only the windows asked for are computed: any place of an epoch costs one
window.

Letters: S shards, W samples of a window.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from stages.pretrain.data import counter_rng

_HELD = 3  # windows kept: a global batch may reach over a border, and workers ask in turn


@dataclass(frozen=True)
class Shards:
    """What the order needs to know of the data. A sample is one crop of one segment."""

    fingerprint: str  # hexadecimal
    samples_S: np.ndarray  # int64: samples of one pass over each shard
    corpus_S: np.ndarray  # int64: which of `weights` is the shard's
    # passes over a corpus in one epoch; 0.5 takes half of it, chosen anew each epoch
    weights: tuple[float, ...]
    window_shards: int

    @property
    def samples_per_epoch(self) -> int:
        """The same in every epoch: for each corpus floor(samples · weight)."""
        return sum(
            int(_whole(self.samples_S[self.corpus_S == c].sum(), w)) for c, w in enumerate(self.weights)
        )


def _whole(samples: np.ndarray | int, weight: float) -> np.ndarray:
    """floor(samples · weight), forgiving the rounding of a product that should be whole."""
    return np.floor(np.asarray(samples, dtype=np.float64) * weight + 1e-6).astype(np.int64)


class Epoch:
    """The order of one epoch. `take` gives any stretch of it."""

    def __init__(self, shards: Shards, seed: int, epoch: int):
        self._shards = shards
        self._key = (int(shards.fingerprint[:16], 16), seed, epoch)
        chance_S = counter_rng.bits(
            np.uint64(counter_rng.key(counter_rng.SHARDS, *self._key)), np.arange(len(shards.samples_S))
        )
        self._shuffled_S = np.argsort(chance_S, kind="stable")
        self._count_S = self._counts()
        ends_S = np.cumsum(self._count_S)
        last = (
            np.minimum(
                np.arange(1, -(-len(ends_S) // shards.window_shards) + 1) * shards.window_shards, len(ends_S)
            )
            - 1
        )
        self._ends = ends_S[last]  # of windows, in samples
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def _counts(self) -> np.ndarray:
        """Samples of each shuffled shard in this epoch: the running total of a corpus is floor(samples ·
        weight)."""
        count_S = np.zeros(len(self._shuffled_S), dtype=np.int64)
        for corpus, weight in enumerate(self._shards.weights):
            own = np.flatnonzero(self._shards.corpus_S[self._shuffled_S] == corpus)
            totals = _whole(np.cumsum(self._shards.samples_S[self._shuffled_S[own]]), weight)
            count_S[own] = np.diff(totals, prepend=0)
        return count_S

    def take(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 (count,) twice: the shard, and the number of the sample within one pass over it, at these
        positions."""
        assert first >= 0 and first + count <= len(self), f"{first} + {count} of {len(self)}"
        parts = []
        while count:
            window = int(np.searchsorted(self._ends, first, side="right"))
            begin = int(self._ends[window - 1]) if window else 0
            part = self._window(window)[first - begin : first - begin + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        packed = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return packed >> 32, packed & 0xFFFFFFFF

    def _window(self, window: int) -> np.ndarray:
        """int64 (W,): shard · 2**32 + number, shuffled."""
        if window in self._held:
            self._held.move_to_end(window)
            return self._held[window]
        stretch = range(
            window * self._shards.window_shards,
            min((window + 1) * self._shards.window_shards, len(self._shuffled_S)),
        )
        packed_W = np.concatenate([self._numbers(place) for place in stretch])
        chance_W = counter_rng.bits(
            np.uint64(counter_rng.key(counter_rng.SHUFFLE, *self._key, window)), np.arange(len(packed_W))
        )
        self._held[window] = packed_W[np.argsort(chance_W, kind="stable")]
        if len(self._held) > _HELD:
            self._held.popitem(last=False)
        return self._held[window]

    def _numbers(self, place: int) -> np.ndarray:
        """The samples this epoch takes of one shard: whole passes, and some of it, drawn without
        replacement."""
        shard, count = int(self._shuffled_S[place]), int(self._count_S[place])
        samples = int(self._shards.samples_S[shard])
        if not count:
            return np.zeros(0, dtype=np.int64)
        passes, rest = divmod(count, samples)
        numbers = [np.tile(np.arange(samples), passes)]
        if rest:
            chance = counter_rng.bits(
                np.uint64(counter_rng.key(counter_rng.COPIES, *self._key, shard)), np.arange(samples)
            )
            numbers.append(np.argsort(chance, kind="stable")[:rest])
        return np.concatenate(numbers) | (shard << 32)
