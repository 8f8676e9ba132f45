import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.label.statistics.codes import entropy_bits, of_codes


def test_codes_of_known_entropy():
    every = np.arange(2048) % 1024  # all alike often: log2 1024 = 10 bits
    one = np.full(2048, 7)
    two = np.arange(2048) % 2
    quarter = np.where(np.arange(2048) % 4 == 0, 3, 900)  # H(1/4) = 0.811 bits
    stats, counts_KC = of_codes(np.stack([every, one, two, quarter], 1).astype(np.uint16), 1024)
    assert stats["code_entropy_bits"] == pytest.approx([10, 0, 1, 0.8113], abs=1e-4)
    assert stats["codes_used"] == [1024, 1, 2, 2]
    assert counts_KC.shape == (4, 1024) and (counts_KC.sum(1) == 2048).all() and counts_KC[3, 900] == 1536


@given(st.integers(1, 300), st.integers(1, 4), st.integers(2, 64), st.integers(0, 99))
def test_entropy_is_scipys(frames, levels, size, seed):
    from scipy.stats import entropy

    codes_TK = np.random.default_rng(seed).integers(0, size, (frames, levels)).astype(np.uint16)
    stats, counts_KC = of_codes(codes_TK, size)
    assert stats["code_entropy_bits"] == pytest.approx(entropy(counts_KC, axis=1, base=2).tolist(), abs=1e-9)


def test_an_empty_level_has_no_entropy():
    assert entropy_bits(np.zeros((2, 8))).tolist() == [0, 0]
