import tracemalloc
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.data import counter_rng
from stages.pretrain.data.order import Epoch, Shards
from tests.stages.pretrain import plain_draws as plain

FINGERPRINT = "0123456789abcdef" * 4


def shards(samples: list[int], weights=(1.0,), corpus=None, window: int = 3) -> Shards:
    return Shards(
        FINGERPRINT, np.array(samples), np.array(corpus or [0] * len(samples)), tuple(weights), window
    )


def everything(made: Shards, seed: int = 0, epoch: int = 0) -> list[tuple[int, int]]:
    order = Epoch(made, seed, epoch)
    return list(zip(*(v.tolist() for v in order.take(0, len(order))), strict=True))


@given(
    samples=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    window=st.integers(1, 14),
    epoch=st.integers(0, 2**20),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_is_a_permutation_of_all_samples(samples, window, epoch):
    made = shards(samples, window=window)
    assert sorted(everything(made, 1, epoch)) == [
        (s, n) for s, count in enumerate(samples) for n in range(count)
    ]
    assert made.samples_per_epoch == sum(samples)


@given(
    data=st.data(), samples=st.lists(st.integers(1, 40), min_size=1, max_size=10), window=st.integers(1, 5)
)
@settings(max_examples=60, deadline=None)
def test_any_stretch_can_be_had_alone(data, samples, window):
    made = shards(samples, window=window)
    whole = everything(made)
    first = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - first))
    shard, number = Epoch(made, 0, 0).take(first, count)
    assert list(zip(shard.tolist(), number.tolist(), strict=True)) == whole[first : first + count]


def test_epochs_seeds_and_data_have_orders_of_their_own():
    made = shards([50] * 6)
    other = Shards("f" * 64, made.samples_S, made.corpus_S, made.weights, made.window_shards)
    seen = [everything(made), everything(made, epoch=1), everything(made, seed=1), everything(other)]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i]) and everything(made) == seen[0]
    expected = 6 / 36  # two independent orders agree in a place about once in all
    assert np.mean([a == b for a, b in zip(seen[0], seen[1], strict=True)]) < expected


@given(
    weights=st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)),
    epoch=st.integers(0, 50),
    samples=st.lists(st.integers(0, 25), min_size=2, max_size=9).filter(lambda s: s[0] and s[1]),
)
@settings(max_examples=80, deadline=None)
def test_weights_are_passes_over_a_corpus(weights, epoch, samples):
    corpus = [i % 2 for i in range(len(samples))]
    made = shards(samples, weights, corpus, window=4)
    found = everything(made, 3, epoch)
    assert len(found) == made.samples_per_epoch
    for c, weight in enumerate(weights):
        own = [s for s in found if corpus[s[0]] == c]
        total = sum(n for n, k in zip(samples, corpus, strict=True) if k == c)
        assert len(own) == int(np.floor(total * weight + 1e-6))
        times = [own.count((s, n)) for s, k in enumerate(corpus) if k == c for n in range(samples[s])]
        assert max(times) <= np.floor(weight) + 2  # evenly, but for a shard's rounding


def test_half_a_corpus_is_another_half_each_epoch():
    made = shards([40] * 5, weights=(0.5,))
    halves = [set(everything(made, epoch=e)) for e in range(6)]
    assert all(len(h) == 100 for h in halves) and len(set.union(*halves)) > 190


def test_ten_million_samples_anywhere_in_little_memory():
    made = shards([720] * 13_889, window=64)
    tracemalloc.start()
    try:
        order = Epoch(made, 0, 0)
        for first in (0, 4_999_999, made.samples_per_epoch - 1000):
            shard, number = order.take(first, 1000)
            assert (
                len(set(zip(shard.tolist(), number.tolist(), strict=True))) == 1000
                and len(set(shard.tolist())) > 40
            )
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_drawn_numbers_are_uniform_and_a_function_of_what_they_are_for():
    share = counter_rng.uniform(np.uint64(counter_rng.key(1, 2)), np.arange(200_000))
    assert (
        abs(share.mean() - 0.5) < 0.003
        and abs(np.bincount((share * 20).astype(int)) / 10_000 - 1).max() < 0.05
    )
    assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.01
    by_key = counter_rng.uniform(counter_rng.keys(counter_rng.key(3), np.arange(200_000)), 0)
    assert abs(by_key.mean() - 0.5) < 0.003 and abs(np.corrcoef(by_key[:-1], by_key[1:])[0, 1]) < 0.01
    assert len({counter_rng.key(a, b) for a in range(50) for b in range(50)}) == 2500
    assert counter_rng.key(1, 2) == counter_rng.key(1, 2) != counter_rng.key(2, 1)
    # SplitMix64 of seed 0, as published
    assert counter_rng.bits(np.uint64(0), np.array([0]))[0] == 0xE220A8397B1DCDAF
    assert (counter_rng.below(7, np.array([0.0, 0.999999999999])) == [0, 6]).all()


def test_beyond_the_end_is_a_bug():
    with pytest.raises(AssertionError):
        Epoch(shards([3]), 0, 0).take(1, 3)


def plainly(made: Shards, seed: int, epoch: int) -> list[tuple[int, int]]:
    """The whole order as described: shards permuted, samples taken, each window shuffled by itself."""
    about = (int(made.fingerprint[:16], 16), seed, epoch)
    samples, corpus, size = made.samples_S.tolist(), made.corpus_S.tolist(), made.window_shards
    shuffled = sorted(range(len(samples)), key=lambda s: plain.bits(plain.key(plain.SHARDS, *about), s))
    seen, taken, per_shard = [0] * len(made.weights), [0] * len(made.weights), []
    for shard in shuffled:
        c = corpus[shard]
        seen[c] += samples[shard]
        due = floor(seen[c] * Fraction(str(made.weights[c]))) - taken[c]
        taken[c] += due
        passes, rest = divmod(due, samples[shard]) if samples[shard] else (0, 0)
        some = plain.key(plain.COPIES, *about, shard)
        drawn = sorted(range(samples[shard]), key=lambda n: plain.bits(some, n))  # noqa: B023
        per_shard.append([(shard, n) for n in list(range(samples[shard])) * passes + drawn[:rest]])
    order = []
    for window in range(0, len(shuffled), size):
        own = [s for part in per_shard[window : window + size] for s in part]
        key = plain.key(plain.SHUFFLE, *about, window // size)
        order += [own[i] for i in sorted(range(len(own)), key=lambda i: plain.bits(key, i))]  # noqa: B023
    return order


@pytest.mark.parametrize(
    ("samples", "weights", "corpus", "window"),
    [
        ([5, 7, 3, 9, 4, 6, 8], (1.0,), None, 3),
        ([5, 7, 3, 9, 4, 6], (1.0,), None, 3),
        ([40], (0.29,), None, 1),
        ([2, 0, 3, 0], (1.0,), None, 2),
        ([10, 20, 30, 5, 9], (0.5, 2.25), [0, 1, 0, 1, 1], 2),
        ([100, 50, 50], (0.29,), None, 64),
        ([3, 3, 3, 3], (3.0,), None, 2),
    ],
)
def test_an_order_is_the_one_described(samples, weights, corpus, window):
    made = shards(samples, weights, corpus, window)
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**40, 12)):
        expected = plainly(made, seed, epoch)
        assert everything(made, seed, epoch) == expected and made.samples_per_epoch == len(expected) == len(
            Epoch(made, seed, epoch)
        )


def test_windows_of_one_size_are_not_shuffled_alike():
    made = shards([40] * 6, window=2)
    order = Epoch(made, 0, 0)
    first_of = {}  # rank of each shard's samples among those of its window
    for window in range(3):
        shard, number = order.take(80 * window, 80)
        own = sorted(set(shard.tolist()), key=shard.tolist().index)
        assert len(own) == 2
        first_of[window] = [np.argsort(number[shard == s]).tolist() for s in sorted(own)] + [
            (shard == shard[0]).tolist()
        ]
    for a in range(3):
        for b in range(a):
            assert all(one != other for one in first_of[a] for other in first_of[b]), (a, b)


@pytest.mark.parametrize("weights", [(1.0,), (0.5,), (1.5,)])
def test_neither_shards_nor_windows_nor_halves_are_drawn_alike_for_another_epoch_seed_or_data(weights):
    made = shards([30] * 8, weights, window=1)
    other = Shards("1" + made.fingerprint[1:], made.samples_S, made.corpus_S, made.weights, 1)
    late = Shards(
        made.fingerprint[:15] + "0" + made.fingerprint[16:], made.samples_S, made.corpus_S, made.weights, 1
    )
    found = [
        everything(made),
        everything(made, epoch=1),
        everything(made, seed=1),
        everything(other),
        everything(late),
    ]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert list(dict.fromkeys(s for s, _ in a)) != list(dict.fromkeys(s for s, _ in b)), (
                "the order of the shards"
            )
            for shard in range(8):
                one, two = ([n for s, n in order if s == shard] for order in (a, b))
                assert one != two, "the order within a window of one shard"
                assert weights == (1.0,) or len(one) == len(two) == 30 * weights[0]
                if weights == (0.5,):
                    assert set(one) != set(two), "which half"


def test_a_product_that_should_be_whole_is():
    for weight, samples, expected in (
        (0.29, 100, 29),
        (0.7, 10, 7),
        (1.1, 10, 11),
        (0.57, 100, 57),
        (0.999, 1000, 999),
        (0.99, 10, 9),
    ):
        assert (
            shards([samples], (weight,)).samples_per_epoch
            == len(everything(shards([samples], (weight,))))
            == expected
        )


def test_no_data_has_an_order_of_nothing():
    assert len(Epoch(shards([]), 0, 0)) == 0 == shards([]).samples_per_epoch
    shard, number = Epoch(shards([4]), 0, 0).take(2, 0)
    assert len(shard) == len(number) == 0 and shard.dtype == number.dtype == np.int64


def test_the_three_windows_used_last_are_kept(monkeypatch):
    made, make = [], Epoch._make_window
    monkeypatch.setattr(Epoch, "_make_window", lambda own, window: made.append(window) or make(own, window))
    order = Epoch(shards([4] * 6, window=1), 0, 0)
    for window, expected in (
        (0, [0]),
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (0, [0, 1, 2]),
        (3, [0, 1, 2, 3]),
        (0, [0, 1, 2, 3]),
        (2, [0, 1, 2, 3]),
        (1, [0, 1, 2, 3, 1]),
        (3, [0, 1, 2, 3, 1, 3]),
    ):
        order.take(4 * window, 2)
        assert made == expected


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 4), (4, 0)])
def test_places_outside_an_epoch_are_a_bug(first, count):
    with pytest.raises(AssertionError):
        Epoch(shards([3]), 0, 0).take(first, count)
