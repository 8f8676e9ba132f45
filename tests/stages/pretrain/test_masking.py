import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain import draws
from stages.pretrain.masking import Masking

T = 374


def keys(count: int, seed: int = 0) -> np.ndarray:
    return draws.keys(draws.key(draws.MASK, seed), np.arange(count))


def described(rng: np.random.Generator, frames: int, masking: Masking) -> np.ndarray:
    """One clip's mask as the recipe describes it, alone in its batch: so many spans of distinct starts, laid over each other."""
    spans = max(masking.min_spans, int(masking.prob * frames / masking.span + rng.random()))
    mask = np.zeros(frames, dtype=bool)
    for start in rng.choice(frames - masking.span, spans, replace=False):
        for frame in range(start, start + masking.span):
            mask[frame] = True
    return mask


def runs(mask_BT: np.ndarray) -> np.ndarray:
    """Share of masked stretches by length, 1 … 30."""
    edged = np.pad(mask_BT, ((0, 0), (1, 1))).astype(int)
    starts, stops = (np.nonzero(np.diff(edged, axis=1).ravel() == step)[0] for step in (1, -1))
    return np.bincount(np.minimum(stops - starts, 30), minlength=31) / len(starts)


def test_masks_are_distributed_as_described():
    masking, rng, clips = Masking(), np.random.default_rng(0), 4000
    slow_BT = np.stack([described(rng, T, masking) for _ in range(clips)])
    fast_BT = masking.draw(keys(clips), T)
    assert fast_BT.sum(axis=1).std() == 0 and abs(fast_BT.mean() - slow_BT.mean()) < 0.002
    assert 0.57 < fast_BT.mean() < 0.60  # D: about 58 %
    spread = np.sqrt(2 * 0.25 / clips)
    assert np.abs(fast_BT.mean(axis=0) - slow_BT.mean(axis=0)).max() < 5 * spread  # each frame, the thin ends included
    assert not fast_BT[:, -1].any() and not slow_BT[:, -1].any()
    assert np.abs(runs(fast_BT) - runs(slow_BT)).max() < 0.01
    pairs_fast, pairs_slow = ((m[:, :-7] & m[:, 7:]).mean() for m in (fast_BT, slow_BT))  # farther apart than a span
    assert abs(pairs_fast - pairs_slow) < 0.005


@given(frames=st.integers(20, 2000), clips=st.integers(1, 6), seed=st.integers(0, 2**40), prob=st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_count_depends_on_the_length_alone_and_a_mask_on_no_neighbour(frames, clips, seed, prob):
    masking = Masking(prob=prob)
    count = masking.masked_frames(frames)
    mask_BT = masking.draw(keys(clips, seed), frames)
    assert mask_BT.shape == (clips, frames) and (mask_BT.sum(axis=1) == count).all()
    assert count > masking.span, "two spans at least"
    for clip in range(clips):
        alone = masking.draw(keys(clips, seed)[clip : clip + 1], frames)
        assert np.array_equal(alone[0], mask_BT[clip])


def test_too_short_a_crop_is_refused():
    with pytest.raises(ValueError, match=r"masking.span is 5.*6 frames are too few.*data.crop_s"):
        Masking().masked_frames(6)
    with pytest.raises(ValueError, match="masking.prob is 0"):
        Masking(prob=0.0)
