"""BEST-RQ: codes are those of its definition, the same on every machine and in every block, and many are
used."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.label.teachers.best_rq import MEAN_DB, STD_DB, BestRq
from stages.signal.mel import LogMel
from tests.excerpt import ArrayWave, excerpt
from tests.stages.label.teachers.labels import labels

SMALL = BestRq(codebooks=2, codebook_size=512, stack=3)


@pytest.fixture(scope="module")
def wave() -> ArrayWave:
    return ArrayWave(excerpt(1))


def test_labels_are_the_nearest_of_the_random_directions(wave):
    codes_TK = labels(SMALL, None, wave)[100:300]
    assert codes_TK.dtype == np.uint16
    mel_TF = LogMel(24_000, 320)(torch.from_numpy(wave.sound.copy())[None], 99 * 320, 202)[0].double().numpy()
    u = np.arange(128) / 127
    mel_TF = (mel_TF - np.polyval(MEAN_DB, u)) / np.polyval(STD_DB, u)
    for i, row in enumerate(codes_TK):
        for k, (project_DE, codes_CE) in enumerate(SMALL.tables()):
            z = mel_TF[i : i + 3].reshape(-1) @ project_DE
            squared = np.square(z / np.linalg.norm(z) - codes_CE).sum(1)
            assert squared[row[k]] < squared.min() + 1e-5


def test_the_random_tables_are_the_same_everywhere():
    project_DE, codes_CE = SMALL.tables()[0]
    assert project_DE.shape == (384, 16) and codes_CE.shape == (512, 16)
    assert np.allclose(np.linalg.norm(codes_CE, axis=1), 1, atol=1e-6)
    assert abs(project_DE).max() <= np.sqrt(6 / 400)
    # numpy's promise about RandomState, and that nothing here draws in another order
    np.testing.assert_allclose(project_DE[0, :2], [0.0119568, 0.0527103], atol=1e-6)
    assert not np.array_equal(project_DE, SMALL.tables()[1][0])


def test_blocks_show_no_seam(wave):
    whole = labels(SMALL, None, wave)
    assert whole.shape == (1500, 2)
    assert np.array_equal(labels(SMALL, None, wave, block_frames=256), whole)
    assert (labels(SMALL, None, wave, block_frames=101) == whole).mean() >= 0.9999


def test_one_codebook_of_8192_is_used_widely_on_music():
    teacher = BestRq()
    codes_TK = np.concatenate([labels(teacher, None, ArrayWave(excerpt(n, length_s=10.0))) for n in range(4)])
    assert codes_TK.shape == (3000, 1) and len(np.unique(codes_TK)) > 600


def test_another_seed_gives_other_codes(wave):
    short = ArrayWave(wave.sound[:48_000])
    assert (labels(SMALL, None, short) != labels(replace(SMALL, seed=1), None, short)).mean() > 0.9


@pytest.mark.parametrize("samples", [0, 1, 319, 320, 641])
def test_silence_and_the_shortest_clips_have_codes_too(samples):
    codes_TK = labels(SMALL, None, ArrayWave(np.zeros(samples, np.float32)))
    assert codes_TK.shape == (samples // 320, 2) and (codes_TK < 512).all()


def test_what_cannot_be_heard_or_given_is_refused(wave):
    broken = ArrayWave(wave.sound[:48_000].copy())
    broken.sound[5000] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity first at sample 5000"):
        labels(SMALL, None, broken)
    with pytest.raises(ValueError, match="best_rq: 3 bytes of weights were given, it has none"):
        SMALL.open(b"abc", "cpu", 1)


@pytest.mark.parametrize(
    "field, value",
    [("codebooks", 0), ("codebook_size", 65537), ("dim", 1), ("mels", 1), ("stack", 9), ("seed", -1)],
)
def test_impossible_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"BestRq.{field} is {value}: expected "):
        BestRq(**{field: value})
