"""k-means on log-mel and chroma: fitting repeats to the byte, labels are scikit-learn's own predictions."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from stages.label.teachers.kmeans import KMeans
from tests.excerpt import ArrayWave, excerpt
from tests.stages.label.teachers.labels import labels, quiet

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = KMeans(codebook_size=48, steps=20, batch=512, fit_minutes=1.0)


@pytest.fixture(scope="module")
def music() -> list[ArrayWave]:
    return [ArrayWave(excerpt(n)) for n in (1, 2)]


@pytest.fixture(scope="module")
def fitted(music) -> tuple[bytes, dict]:
    return SMALL.fit(music, "cpu", 1, quiet)


def test_the_same_waves_give_the_same_bytes_and_another_seed_others(music, fitted):
    assert SMALL.fit(music, "cpu", 1, quiet)[0] == fitted[0]
    assert replace(SMALL, seed=1).fit(music, "cpu", 1, quiet)[0] != fitted[0]


def test_labels_are_scikit_learns_predictions(music, fitted):
    from sklearn.cluster import KMeans as Reference

    arrays = load(fitted[0])
    reference = Reference(len(arrays["codes"]), n_init=1, max_iter=1, init=arrays["codes"])
    reference.fit(arrays["codes"])  # each code its own cluster: the centres stay
    assert np.allclose(reference.cluster_centers_, arrays["codes"], atol=1e-6)
    bands_TD = SMALL.features("cpu").mel(music[0], 0, 1500)
    x_TD = ((SMALL._seen(bands_TD).numpy() - arrays["mean"]) / arrays["scale"]).astype(np.float32)
    ours = labels(SMALL, fitted[0], music[0])
    assert ours.dtype == np.uint16 and ours.shape == (1500, 1)
    assert (ours[:, 0] == reference.predict(x_TD)).mean() >= 0.999


def test_the_report_says_how_good_the_codes_are(fitted):
    [level] = fitted[1]["levels"]
    assert level["used"] >= 40 and 20 < level["perplexity"] <= 48
    assert level["fit_error"] < 0.7 and level["heldout_error"] < 0.9


def test_a_note_is_told_by_its_chroma_whatever_its_octave(fitted):
    """What log-mel alone would not say: the same class an octave apart is near in the chroma half."""
    t = np.arange(24_000) / 24_000

    def chroma(hz: float) -> np.ndarray:
        wave = ArrayWave((0.3 * np.sin(2 * np.pi * hz * t)).astype(np.float32))
        return SMALL._seen(SMALL.features("cpu").mel(wave, 30, 1))[0, SMALL.mels :].numpy()

    for semitone in range(12):
        low, high = (chroma(440 * 2 ** ((semitone - 9) / 12 + octave)) for octave in (0, 1))
        assert low.argmax() == high.argmax() == semitone


def test_the_report_tells_how_the_heldout_error_fell(fitted):
    history = fitted[1]["history"]
    assert [row["step"] for row in history] == [SMALL.steps * (i + 1) // 10 for i in range(10)]
    assert history[-1]["heldout_error"] == [pytest.approx(fitted[1]["levels"][0]["heldout_error"], rel=0.1)]


def test_blocks_show_no_seam(music, fitted):
    whole = labels(SMALL, fitted[0], music[0])
    assert np.array_equal(labels(SMALL, fitted[0], music[0], block_frames=256), whole)
    assert (labels(SMALL, fitted[0], music[0], block_frames=101) == whole).mean() >= 0.9999


@pytest.mark.parametrize("samples", [0, 1, 319, 320, 641])
def test_silence_and_the_shortest_clips_have_codes_too(fitted, samples):
    codes_TK = labels(SMALL, fitted[0], ArrayWave(np.zeros(samples, np.float32)))
    assert codes_TK.shape == (samples // 320, 1) and (codes_TK < 48).all()


def test_silence_fits_without_nan():
    weights, report = SMALL.fit([ArrayWave(np.zeros(24_000 * 8, np.float32))], "cpu", 1, quiet)
    assert np.isfinite(report["levels"][0]["heldout_error"])
    assert len(labels(SMALL, weights, ArrayWave(np.zeros(24_000, np.float32)))) == 75


def test_weights_that_are_damaged_or_anothers_are_refused_with_both_values(fitted):
    whole, note = fitted[0], {"kmeans": SMALL._identity()}
    with pytest.raises(ValueError, match=rf"kmeans: .*{len(whole) - 9} bytes of {len(whole)} announced"):
        SMALL.open(whole[:-9], "cpu", 1)
    with pytest.raises(ValueError, match="kmeans: no weights"):
        SMALL.open(None, "cpu", 1)
    with pytest.raises(ValueError, match=r'"n_fft": 4096.*"n_fft": 2048'):
        replace(SMALL, n_fft=2048).open(whole, "cpu", 1)
    tensors = load(whole)
    with pytest.raises(
        ValueError, match=r"codes is \('float32', \(47, 140\)\), expected \('float32', \(48, 140\)\)"
    ):
        SMALL.open(save(tensors | {"codes": tensors["codes"][:47].copy()}, note), "cpu", 1)
    with pytest.raises(ValueError, match="mean holds NaN"):
        SMALL.open(save(tensors | {"mean": tensors["mean"] * np.nan}, note), "cpu", 1)
