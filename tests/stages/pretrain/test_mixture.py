import numpy as np
import pytest

from stages.pretrain import draws
from stages.pretrain.mixture import Mixture

N, G = 120_000, 64


def drawn(mixture: Mixture, places: np.ndarray, global_batch: int = G, seed: int = 0):
    return mixture.draw(draws.keys(draws.key(draws.MIXTURE, seed), places), places % global_batch, global_batch, N)


def test_pieces_are_as_the_recipe_says():
    clips = 20_000
    pieces = drawn(Mixture(), np.arange(clips))
    count = np.bincount(pieces.clip, minlength=clips)
    assert abs((count > 0).mean() - 0.5) < 0.02
    assert np.abs(np.bincount(count[count > 0])[1:] / (count > 0).sum() - 1 / 3).max() < 0.02
    assert pieces.length.min() >= 12_000 and pieces.length.max() <= 24_000 and abs(pieces.length.mean() - 18_000) < 100
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
            assert np.array_equal(getattr(part, name), getattr(whole, name)[np.isin(whole.clip, places)]), name


def test_off_alone_and_wrong():
    assert len(drawn(Mixture(prob=0.0), np.arange(G))) == 0
    assert len(drawn(Mixture(prob=1.0), np.zeros(1, dtype=int), global_batch=1)) == 0, "a clip alone has no donor"
    assert len(drawn(Mixture(prob=1.0, min_pieces=2, max_pieces=2), np.arange(G))) == 2 * G
    for wrong, said in ((dict(piece_s=(1.0, 0.5)), "mixture.piece_s"), (dict(prob=1.5), "mixture.prob"), (dict(max_pieces=0), "max_pieces")):
        with pytest.raises(ValueError, match=said):
            Mixture(**wrong)
