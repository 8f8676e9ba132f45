import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain import draws
from stages.pretrain.order import Epoch, Shards

FINGERPRINT = "0123456789abcdef" * 4


def shards(samples: list[int], weights=(1.0,), corpus=None, window: int = 3) -> Shards:
    return Shards(FINGERPRINT, np.array(samples), np.array(corpus or [0] * len(samples)), tuple(weights), window)


def everything(made: Shards, seed: int = 0, epoch: int = 0) -> list[tuple[int, int]]:
    order = Epoch(made, seed, epoch)
    return list(zip(*(v.tolist() for v in order.take(0, len(order))), strict=True))


@given(samples=st.lists(st.integers(0, 30), min_size=1, max_size=12), window=st.integers(1, 14), epoch=st.integers(0, 2**20))
@settings(max_examples=80, deadline=None)
def test_an_epoch_is_a_permutation_of_all_samples(samples, window, epoch):
    made = shards(samples, window=window)
    assert sorted(everything(made, 1, epoch)) == [(s, n) for s, count in enumerate(samples) for n in range(count)]
    assert made.samples_per_epoch == sum(samples)


@given(data=st.data(), samples=st.lists(st.integers(1, 40), min_size=1, max_size=10), window=st.integers(1, 5))
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


@given(weights=st.tuples(st.floats(0.05, 3), st.floats(0.05, 3)), epoch=st.integers(0, 50),
       samples=st.lists(st.integers(0, 25), min_size=2, max_size=9).filter(lambda s: s[0] and s[1]))
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
            assert len(set(zip(shard.tolist(), number.tolist(), strict=True))) == 1000 and len(set(shard.tolist())) > 40
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_drawn_numbers_are_uniform_and_a_function_of_what_they_are_for():
    share = draws.uniform(np.uint64(draws.key(1, 2)), np.arange(200_000))
    assert abs(share.mean() - 0.5) < 0.003 and abs(np.bincount((share * 20).astype(int)) / 10_000 - 1).max() < 0.05
    assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.01
    by_key = draws.uniform(draws.keys(draws.key(3), np.arange(200_000)), 0)
    assert abs(by_key.mean() - 0.5) < 0.003 and abs(np.corrcoef(by_key[:-1], by_key[1:])[0, 1]) < 0.01
    assert len({draws.key(a, b) for a in range(50) for b in range(50)}) == 2500
    assert draws.key(1, 2) == draws.key(1, 2) != draws.key(2, 1)
    assert draws.bits(np.uint64(0), np.array([0]))[0] == 0xE220A8397B1DCDAF  # SplitMix64 of seed 0, as published
    assert (draws.below(7, np.array([0.0, 0.999999999999])) == [0, 6]).all()


def test_beyond_the_end_is_a_bug():
    with pytest.raises(AssertionError):
        Epoch(shards([3]), 0, 0).take(1, 3)
