"""Where crops begin. G samples of a global batch, V held-out segments."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stages.pretrain.data import counter_rng
from stages.pretrain.data.index import Pinned
from stages.pretrain.data.order import Epoch
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from stages.signal.rates import HOP_SAMPLES


@dataclass(frozen=True)
class Crops:
    """int64 (B,) each: the segment's row, and the first sample in it, a multiple of 320."""

    row: np.ndarray
    start: np.ndarray

    def __getitem__(self, chosen: list[int] | np.ndarray) -> "Crops":
        return Crops(self.row[chosen], self.start[chosen])


class CropIndex:
    """Of training; keeps the order of the two epochs used last."""

    def __init__(self, pinned: Pinned, data: Data):
        self._pinned, self._samples = pinned, data.samples
        self._epoch = lru_cache(2)(lambda seed, epoch: Epoch(pinned.order, seed, epoch))

    def crops(self, state: State, places_B: np.ndarray) -> Crops:
        """Of the samples at these places of the global batch."""
        pinned, epoch = self._pinned, self._epoch(state.seed, state.epoch)
        shard_B, number_B = (x_G[places_B] for x_G in epoch.take(state.consumed, state.global_batch))
        share_B = counter_rng.uniform(state.keys(counter_rng.CROP, places_B), 0)
        return self._crops(pinned.ends_S[shard_B] - pinned.crops_S[shard_B] + number_B, share_B)

    def replacement(self, state: State, place: int, attempt: int) -> Crops:
        """For a sample that cannot be read: a function of place and attempt alone."""
        key = counter_rng.key(counter_rng.REPLACEMENT, state.seed, state.epoch, state.consumed + place)
        share = counter_rng.uniform(key, 2 * attempt + np.arange(2))
        return self._crops(counter_rng.below(int(self._pinned.ends_S[-1]), share[:1]), share[1:])

    def _crops(self, sample_B: np.ndarray, share_B: np.ndarray) -> Crops:
        """Of samples numbered through all shards: crop j of a segment's n in one pass begins in the j-th of n
        equal parts of where one may begin."""
        pinned = self._pinned
        row_B = np.searchsorted(pinned.ends_R, sample_B, side="right")
        count_B = pinned.crops_R[row_B].astype(np.int64)
        part_B = sample_B - (pinned.ends_R[row_B] - count_B)
        starts_B = (pinned.samples_R[row_B].astype(np.int64) - self._samples) // HOP_SAMPLES + 1
        return Crops(row_B, counter_rng.below(starts_B, (part_B + share_B) / count_B) * HOP_SAMPLES)


def held_out(pinned: Pinned, data: Data) -> Crops:
    """At most data.valid_crops, side by side in the held-out segments, drawn in turn from every recording."""
    row_V = pinned.valid_V
    count_V = pinned.samples_R[row_V] // data.samples
    row, every = np.repeat(row_V, count_V), np.arange(count_V.sum())
    number = every - np.repeat(np.cumsum(count_V) - count_V, count_V)
    names = [pinned.recording(r) for r in row_V]
    recording = np.repeat(np.unique(names, return_inverse=True)[1].astype(np.int64), count_V)
    chance = counter_rng.bits(counter_rng.key(counter_rng.VALIDATION, 0), every)
    by_recording = np.lexsort((chance, recording))
    owner = recording[by_recording]
    turn = every - np.searchsorted(owner, owner)  # first, second … crop of its recording
    chosen = np.sort(by_recording[np.lexsort((chance[by_recording], turn))][: data.valid_crops])
    return Crops(row[chosen], number[chosen].astype(np.int64) * data.samples)
