import numpy as np
import pytest

from stages.pretrain.data import counter_rng
from tests.stages.pretrain import plain_draws as plain

PARTS = [(), (0,), (1,), (1, 0), (0, 1), (4, 5, 6), (2, 2**64 - 1, 3), (7, 2**63, 12, 1)]


@pytest.mark.parametrize("parts", PARTS)
def test_keys_and_numbers_are_those_of_the_plain_generator(parts):
    assert counter_rng.key(*parts) == plain.key(*parts)
    counters = [0, 1, 2, 1000, 2**40, 2**63, 2**64 - 1]
    key = np.uint64(counter_rng.key(*parts))
    assert counter_rng.bits(key, np.array(counters, dtype=np.uint64)).tolist() == [
        plain.bits(int(key), c) for c in counters
    ]
    assert counter_rng.uniform(key, np.arange(50)).tolist() == [plain.uniform(int(key), c) for c in range(50)]
    assert counter_rng.keys(int(key), np.arange(50)).tolist() == [plain.bits(int(key), c) for c in range(50)]


def test_keys_and_counters_are_broadcast_together():
    keys_B = counter_rng.keys(9, np.arange(3))
    assert keys_B.dtype == np.uint64
    expected = [[plain.bits(plain.bits(9, b), c) for c in range(4)] for b in range(3)]
    assert counter_rng.bits(keys_B[:, None], np.arange(4)).tolist() == expected
    assert keys_B.tolist() == [plain.bits(9, b) for b in range(3)], "drawing leaves the keys as they are"


def test_scalars_wrap_without_a_warning():
    with np.errstate(over="raise"):
        assert int(counter_rng.bits(np.uint64(2**64 - 1), 2**62)) == plain.bits(2**64 - 1, 2**62)


def test_numbers_below_a_bound_never_reach_it():
    assert counter_rng.below(7, np.array([0.0, 1 / 7, 0.1429, 0.5, 0.999999, 1.0])).tolist() == [
        0,
        1,
        1,
        3,
        6,
        6,
    ]
    assert counter_rng.below(np.array([1, 2, 3]), np.array([0.99, 0.5, 0.34])).tolist() == [0, 1, 1]
    assert counter_rng.below(5, np.array([0.3])).dtype == np.int64
    assert (
        counter_rng.uniform(np.uint64(3), np.arange(10_000)).min() >= 0
        and counter_rng.uniform(np.uint64(3), np.arange(10_000)).max() < 1
    )


def test_a_permutation_is_the_order_of_its_numbers():
    found = counter_rng.permutation(100, 2, 5)
    assert sorted(found.tolist()) == list(range(100)) and found.dtype == np.int64
    bits = counter_rng.bits(counter_rng.key(2, 5), np.arange(100)).tolist()
    assert [bits[i] for i in found] == sorted(bits)
    assert counter_rng.permutation(0, 2, 5).tolist() == []


def test_every_use_has_a_stream_of_its_own_and_keeps_it():
    """Another number here means other orders, crops, masks and mixtures: VERSION is raised with it."""
    named = [
        counter_rng.SHARDS,
        counter_rng.COPIES,
        counter_rng.SHUFFLE,
        counter_rng.CROP,
        counter_rng.MASK,
        counter_rng.MIXTURE,
        counter_rng.REPLACEMENT,
        counter_rng.VALIDATION,
    ]
    assert (named, counter_rng.VERSION) == ([1, 2, 3, 4, 5, 6, 7, 8], 1)
