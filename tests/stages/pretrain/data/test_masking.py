from itertools import combinations
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.data import counter_rng
from stages.pretrain.data.masking import Masking, _covered
from tests.stages.pretrain import plain_draws as plain

T = 374


def keys(count: int, seed: int = 0) -> np.ndarray:
    return counter_rng.keys(counter_rng.key(counter_rng.MASK, seed), np.arange(count))


def described(rng: np.random.Generator, frames: int, masking: Masking) -> np.ndarray:
    """One clip's mask as the recipe describes it, alone in its batch: so many spans of distinct starts, laid
    over each other."""
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
    # each frame, the thin ends included
    assert np.abs(fast_BT.mean(axis=0) - slow_BT.mean(axis=0)).max() < 5 * spread
    assert not fast_BT[:, -1].any() and not slow_BT[:, -1].any()
    assert np.abs(runs(fast_BT) - runs(slow_BT)).max() < 0.01
    # farther apart than a span
    pairs_fast, pairs_slow = ((m[:, :-7] & m[:, 7:]).mean() for m in (fast_BT, slow_BT))
    assert abs(pairs_fast - pairs_slow) < 0.005


@given(
    frames=st.integers(20, 2000),
    clips=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    prob=st.floats(0.05, 1.0),
)
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
    with pytest.raises(ValueError, match="Masking.prob is 0"):
        Masking(prob=0.0)


def coverage(frames: int, span: int, spans: int) -> float:
    """Mean number of frames under `spans` distinct starts, over every choice of them there is."""
    found = [
        len({start + i for start in chosen for i in range(span)})
        for chosen in combinations(range(frames - span), spans)
    ]
    return sum(found) / len(found)


COUNTS = [
    (Masking(0.8, 5, 2), 12),
    (Masking(0.8, 5, 2), 16),
    (Masking(0.5, 2, 2), 9),
    (Masking(0.9, 3, 1), 11),
    (Masking(0.3, 1, 2), 10),
    (Masking(0.1, 3, 3), 12),
    (Masking(0.2, 2, 1), 6),
    (Masking(1.2, 4, 2), 13),
    (Masking(0.05, 2, 1), 14),
    (Masking(0.66, 1, 1), 9),
]


@pytest.mark.parametrize(("masking", "frames"), COUNTS)
def test_the_count_is_what_the_described_spans_cover_on_average(masking, frames):
    mean = max(masking.min_spans, masking.prob * frames / masking.span)
    more = mean - floor(mean)  # how often one span more is drawn: int(mean + u) of u in [0, 1)
    expected = (1 - more) * coverage(frames, masking.span, floor(mean)) + (
        more and more * coverage(frames, masking.span, floor(mean) + 1)
    )
    assert masking.masked_frames(frames) == round(expected)
    assert _covered(frames, masking.span, floor(mean)) == pytest.approx(
        coverage(frames, masking.span, floor(mean))
    )


def test_every_start_taken_covers_all_but_the_last_frame():
    assert (
        _covered(9, 3, 6) == 8
        and _covered(9, 3, 5) == pytest.approx(coverage(9, 3, 5))
        and _covered(9, 3, 1) == 3
    )


@pytest.mark.parametrize(
    ("masking", "frames"), [*COUNTS, (Masking(), 48), (Masking(), T), (Masking(0.65, 10, 2), 200)]
)
def test_spans_are_laid_in_drawn_order_and_the_last_is_cut_short(masking, frames):
    clips = 5
    mask_BT, count = masking.draw(keys(clips), frames), masking.masked_frames(frames)
    for clip in range(clips):
        key = plain.bits(plain.key(plain.MASKS, 0), clip)
        expected = [False] * frames
        for start in sorted(range(frames - masking.span), key=lambda s: plain.bits(key, s)):  # noqa: B023
            for frame in range(start, start + masking.span):
                if sum(expected) < count:
                    expected[frame] = True
        assert mask_BT[clip].tolist() == expected


@pytest.mark.parametrize(
    ("masking", "least"),
    [(Masking(0.5, 1, 1), 4), (Masking(0.8, 5, 2), 8), (Masking(0.1, 3, 3), 7), (Masking(0.8, 5, 4), 10)],
)
def test_the_shortest_clip_has_a_start_for_one_span_more(masking, least):
    assert 0 < masking.draw(keys(3), least).sum(axis=1)[0] == masking.masked_frames(least) <= least
    with pytest.raises(
        ValueError,
        match=f"masking.span is {masking.span}, prob {masking.prob}, min_spans {masking.min_spans}: "
        f"{least - 1} frames are too few for .* spans; use longer crops",
    ):
        masking.masked_frames(least - 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prob": 0.0}, "Masking.prob"),
        ({"prob": -0.1}, "Masking.prob"),
        ({"prob": 5.001}, "Masking.prob"),
        ({"span": 0}, "Masking.span"),
        ({"min_spans": 0}, "Masking.min_spans"),
    ],
)
def test_impossible_masks_are_refused(fields, said):
    with pytest.raises(ValueError, match=f"{said} is"):
        Masking(**fields)


def test_the_widest_settings_are_accepted_and_the_usual_are_the_recipes():
    assert Masking(prob=5.0) and Masking(prob=0.001) and Masking(span=1) and Masking(min_spans=1)
    assert Masking() == Masking(prob=0.8, span=5, min_spans=2)
