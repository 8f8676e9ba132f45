import numpy as np
import pytest

from stages.pretrain.data import counter_rng
from stages.pretrain.data.mixture import Mixture
from tests.stages.pretrain import plain_draws as plain

N, G = 120_000, 64


def drawn(mixture: Mixture, places: np.ndarray, global_batch: int = G, seed: int = 0):
    return mixture.draw(
        counter_rng.keys(counter_rng.key(counter_rng.MIXTURE, seed), places),
        places % global_batch,
        global_batch,
        N,
    )


def test_pieces_are_as_the_recipe_says():
    clips = 20_000
    pieces = drawn(Mixture(), np.arange(clips))
    count = np.bincount(pieces.clip, minlength=clips)
    assert abs((count > 0).mean() - 0.5) < 0.02
    assert np.abs(np.bincount(count[count > 0])[1:] / (count > 0).sum() - 1 / 3).max() < 0.02
    assert (
        pieces.length.min() >= 12_000
        and pieces.length.max() <= 24_000
        and abs(pieces.length.mean() - 18_000) < 100
    )
    for first in (pieces.start, pieces.to):
        assert first.min() >= 0 and (first + pieces.length).max() <= N
    assert abs((pieces.to + pieces.length / 2).mean() - N / 2) < 700
    own = pieces.clip % G
    assert (pieces.donor != own).all() and pieces.donor.min() == 0 and pieces.donor.max() == G - 1
    ahead = np.bincount((pieces.donor - own) % G, minlength=G)[1:] / len(pieces)
    assert np.abs(ahead * (G - 1) - 1).max() < 0.25  # every other place alike


def test_a_clip_is_mixed_alike_whoever_shares_its_micro_batch():
    whole = drawn(Mixture(), np.arange(G))
    for places in (np.arange(0, G, 2), np.arange(5, 9)):
        part = drawn(Mixture(), places)
        for name in ("donor", "start", "to", "length"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[np.isin(whole.clip, places)]), (
                name
            )


def test_off_alone_and_wrong():
    assert len(drawn(Mixture(prob=0.0), np.arange(G))) == 0
    assert len(drawn(Mixture(prob=1.0), np.zeros(1, dtype=int), global_batch=1)) == 0, (
        "a clip alone has no donor"
    )
    assert len(drawn(Mixture(prob=1.0, min_pieces=2, max_pieces=2), np.arange(G))) == 2 * G
    for wrong, said in (
        (dict(piece_s=(1.0, 0.5)), "Mixture.piece_s"),
        (dict(prob=1.5), "Mixture.prob"),
        (dict(max_pieces=0), "max_pieces"),
    ):
        with pytest.raises(ValueError, match=said):
            Mixture(**wrong)


@pytest.mark.parametrize(
    ("mixture", "global_batch", "samples"),
    [
        (Mixture(), 8, N),
        (Mixture(0.7, 2, 5, (0.5, 1.5)), 5, N),
        (Mixture(1.0, 1, 1, (1.0, 1.0)), 2, N),
        (Mixture(1.0, 3, 3, (0.1, 9.0)), 3, 16_000),
        (Mixture(1.0, 1, 2, (1.0, 2.0)), 4, 12_000),
        (Mixture(1.0), 1, N),
        (Mixture(0.0), 8, N),
    ],
)
def test_pieces_are_the_ones_described(mixture, global_batch, samples):
    places = np.array([p for p in (3, 0, 4, 7, 1, 2) if p < global_batch])
    keys_B = counter_rng.keys(counter_rng.key(counter_rng.MIXTURE, 2, 3), 100 + places)
    pieces = mixture.draw(keys_B, places, global_batch, samples)
    expected = []
    for clip, place in enumerate(places.tolist()):
        key = plain.bits(plain.key(plain.MIXTURE, 2, 3), 100 + place)
        many = mixture.min_pieces + plain.below(
            mixture.max_pieces - mixture.min_pieces + 1, plain.uniform(key, 1)
        )
        others = [p for p in range(global_batch) if p != place]
        if plain.uniform(key, 0) >= mixture.prob or not others:
            continue
        for piece in range(many):
            share = [plain.uniform(key, 2 + 4 * piece + i) for i in range(4)]
            low, high = (min(round(s * 24_000), samples) for s in mixture.piece_s)
            length = low + plain.below(high - low + 1, share[0])
            free = samples - length + 1
            expected.append(
                (
                    clip,
                    others[plain.below(len(others), share[1])],
                    plain.below(free, share[2]),
                    plain.below(free, share[3]),
                    length,
                )
            )
    found = list(
        zip(*(getattr(pieces, n).tolist() for n in ("clip", "donor", "start", "to", "length")), strict=True)
    )
    assert (
        found == expected
        and len(pieces) == len(expected)
        and (expected or global_batch == 1 or mixture.prob == 0)
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prob": -0.01}, "prob"),
        ({"prob": 1.01}, "prob"),
        ({"min_pieces": 0}, "min_pieces"),
        ({"min_pieces": 4}, "max_pieces"),
        ({"max_pieces": 65}, "max_pieces"),
        ({"piece_s": (0.0, 1.0)}, "piece_s"),
        ({"piece_s": (1.0,)}, "piece_s"),
        ({"piece_s": (0.5, 1.0, 2.0)}, "piece_s"),
        ({"piece_s": (1.0, 0.99)}, "piece_s"),
        ({"gain": -0.01}, "gain"),
    ],
)
def test_impossible_mixtures_are_refused(fields, said):
    with pytest.raises(ValueError, match=rf"Mixture.{said}(\[0\])? is"):
        Mixture(**fields)


def test_the_widest_settings_are_accepted_and_the_usual_are_the_recipes():
    for fields in (
        {"prob": 0.0},
        {"prob": 1.0},
        {"min_pieces": 3},
        {"max_pieces": 64},
        {"max_pieces": 1},
        {"piece_s": (1.0, 1.0)},
        {"piece_s": (0.001, 0.5)},
        {"gain": 0.0},
        {"gain": 0.5},
    ):
        assert Mixture(**fields)
    assert Mixture() == Mixture(prob=0.5, min_pieces=1, max_pieces=3, piece_s=(0.5, 1.0), gain=1.0)
