"""Where crops begin: a function of (seed, epoch, position), each in its own part of the segment.

Letters: B clips, R rows.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from stages.pretrain.data import crop_index
from stages.pretrain.data.crop_index import CropIndex
from stages.pretrain.data.index import Facts, Pinned
from stages.pretrain.data.order import Epoch
from stages.pretrain.data.settings import Data
from stages.pretrain.data.state import State
from tests.stages.pretrain import plain_draws as plain

CROP, G = 3200, 4
SAMPLES_R = [3200 * 3 + 5, 3200, 3519, 3520, 6400, 90_000, 45_123, 5000]
CROPS_R = [3, 1, 1, 1, 2, 28, 0, 4]  # the last but one is held out
SHARD_R = [0, 0, 0, 1, 1, 1, 1, 2]


@pytest.fixture
def pinned() -> Pinned:
    facts = Facts(
        "89ab" * 16,
        {"weights": [1.0], "window_shards": 2},
        ["audio"],
        (),
        (),
        None,
        [["a", "b", "c"]],
        [""],
        1.0,
        0.0,
        {},
        {},
        {},
    )
    crops_S = np.bincount(SHARD_R, CROPS_R).astype(np.int64)
    arrays = {
        "samples_R": np.array(SAMPLES_R, np.int32),
        "crops_R": np.array(CROPS_R, np.uint16),
        "ends_R": np.cumsum(CROPS_R),
        "crops_S": crops_S,
        "corpus_S": np.zeros(3, np.int32),
    }
    return Pinned(facts, Path("nowhere"), ("nowhere",), arrays)


@pytest.fixture
def places(pinned) -> CropIndex:
    return CropIndex(pinned, Data(crop_samples=CROP))


def state(consumed: int = 0, seed: int = 1, epoch: int = 0) -> State:
    return State("89ab" * 16, seed, G, epoch, consumed)


def epoch_of(places: CropIndex, seed: int = 1, epoch: int = 0) -> list[tuple[int, int]]:
    """(row, start) in order."""
    found = []
    for consumed in range(0, sum(CROPS_R), G):
        crops = places.crops(state(consumed, seed, epoch), np.arange(G))
        found += zip(crops.row.tolist(), crops.start.tolist(), strict=True)
    return found


def begins(row: int) -> int:
    """How many places there are where a crop of this segment may begin."""
    return len([s for s in range(0, SAMPLES_R[row], 320) if s + CROP <= SAMPLES_R[row]])


def by_row(crops: list[tuple[int, int]]) -> dict[int, list[int]]:
    found = defaultdict(list)
    for row, start in crops:
        found[row].append(start)
    return {row: sorted(starts) for row, starts in found.items()}


def test_crops_are_the_ones_described(places, pinned):
    owner = [(row, part) for row, count in enumerate(CROPS_R) for part in range(count)]
    first_S = np.cumsum(pinned.crops_S) - pinned.crops_S
    for seed, epoch in ((1, 0), (1, 7), (2**40, 0)):
        shard, number = Epoch(pinned.order, seed, epoch).take(0, sum(CROPS_R))
        expected = []
        for position, sample in enumerate((first_S[shard] + number).tolist()):
            row, part = owner[sample]
            share = plain.uniform(plain.bits(plain.key(plain.CROP, seed, epoch), position), 0)
            expected.append((row, 320 * plain.below(begins(row), (part + share) / CROPS_R[row])))
        assert epoch_of(places, seed, epoch) == expected


def test_every_crop_lies_in_its_own_part_of_the_segment(places):
    for epoch in range(20):
        starts = by_row(epoch_of(places, epoch=epoch))
        assert {row: len(s) for row, s in starts.items()} == {r: n for r, n in enumerate(CROPS_R) if n}
        for row, own in starts.items():
            for part, start in enumerate(own):
                assert start % 320 == 0 and start + CROP <= SAMPLES_R[row]
                assert (
                    int(begins(row) * part / CROPS_R[row])
                    <= start // 320
                    <= begins(row) * (part + 1) / CROPS_R[row]
                )


def test_another_epoch_or_seed_has_other_starts_and_the_same_one_the_same(places, pinned):
    found = [by_row(epoch_of(places, seed, epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1))]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert np.mean([x != y for x, y in zip(a[5], b[5], strict=True)]) > 0.6 and (a[0], a[7]) != (
                b[0],
                b[7],
            )
    assert by_row(epoch_of(CropIndex(pinned, Data(crop_samples=CROP)), 1, 0)) == found[0]


def test_over_the_epochs_crops_begin_wherever_they_may(places):
    times = defaultdict(lambda: defaultdict(int))
    for epoch in range(200):
        for row, start in epoch_of(places, epoch=epoch):
            times[row][start] += 1
    assert (
        set(times[1]) == {0} == set(times[2])
        and set(times[3]) == {0, 320}
        and set(times[7]) == set(range(0, 1601, 320))
    )
    for row in (0, 5):
        assert sorted(times[row]) == list(range(0, 320 * begins(row), 320))
        expected = 200 * CROPS_R[row] / begins(row)
        assert all(abs(n - expected) < 6 * expected**0.5 for n in times[row].values())


def test_a_sample_is_the_same_whoever_asks_for_it(places, pinned):
    whole = epoch_of(places)
    for consumed, own in ((0, [2]), (3, [1, 0]), (17, [0, 3]), (36, [3])):
        crops = places.crops(state(consumed), np.array(own))
        assert list(zip(crops.row.tolist(), crops.start.tolist(), strict=True)) == [
            whole[consumed + p] for p in own
        ]


def replacements(places: CropIndex, at: State, place: int = 0, attempts: int = 16) -> list[tuple[int, int]]:
    found = [places.replacement(at, place, attempt) for attempt in range(attempts)]
    return [(int(c.row[0]), int(c.start[0])) for c in found]


def test_replacements_are_the_ones_described(places):
    owner = [(row, part) for row, count in enumerate(CROPS_R) for part in range(count)]
    for seed, epoch, consumed, place in ((1, 0, 0, 0), (1, 0, 12, 3), (2, 5, 4, 1)):
        key, expected = plain.key(plain.REPLACEMENT, seed, epoch, consumed + place), []
        for attempt in range(16):
            row, part = owner[plain.below(len(owner), plain.uniform(key, 2 * attempt))]
            expected.append(
                (
                    row,
                    320
                    * plain.below(begins(row), (part + plain.uniform(key, 2 * attempt + 1)) / CROPS_R[row]),
                )
            )
        assert replacements(places, state(consumed, seed, epoch), place) == expected


def test_a_replacement_belongs_to_its_sample_alone_and_comes_from_all_the_data(places):
    assert replacements(places, state(12), 3) == replacements(places, state(15), 0), (
        "whoever shares the global batch"
    )
    others = [
        replacements(places, state(c, s, e)) for c, s, e in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))
    ]
    assert all(a != b for i, a in enumerate(others) for b in others[:i])
    drawn = [row for c in range(40) for row, _ in replacements(places, state(c))]
    share = np.bincount(drawn, minlength=8) / len(drawn)
    assert share[6] == 0 and np.abs(share - np.array(CROPS_R) / sum(CROPS_R)).max() < 0.06


def test_the_order_of_two_epochs_is_kept_at_a_border(places, monkeypatch):
    made = []
    monkeypatch.setattr(crop_index, "Epoch", lambda *a: made.append(a[2]) or Epoch(*a))
    for epoch, expected in ((0, [0]), (1, [0, 1]), (0, [0, 1]), (2, [0, 1, 2]), (0, [0, 1, 2])):
        places.crops(state(epoch=epoch), np.arange(2))
        assert made == expected
    places.crops(state(epoch=1), np.arange(2))
    assert made == [0, 1, 2, 1], "the one used least lately was dropped"
