"""Correlation of two channels, by itself and through the decoder."""

import numpy as np
import pytest
import soundfile

from stages.label.base import Sample
from stages.label.decode import Decode
from stages.label.statistics.stereo import Stereo, products
from tests.stages.label.decoding.sounds import source

NOISE = np.random.default_rng(0).normal(0, 0.1, (3, 20 * 44_100)).astype(np.float32)


def correlation(left, right):
    stereo = Stereo()
    stereo.add(0.0, 5.0, *products(np.stack([left, right])))
    return stereo.correlation(0.0, 5.0)


def test_of_known_pairs():
    a, b = NOISE[:2]
    assert correlation(a, a) == 1 and correlation(a, -a) == -1 and correlation(a, 0.2 * a) == 1
    assert correlation(a, b) == pytest.approx(0, abs=0.01)
    assert correlation(a, (a + b) / 2**0.5) == pytest.approx(0.707, abs=0.01)
    assert correlation(a, 0 * a) is None


def test_a_segment_takes_its_share_of_a_block():
    stereo = Stereo()
    stereo.add(0.0, 4.0, 1.0, 1.0, 1.0)  # alike
    stereo.add(4.0, 8.0, 1.0, 1.0, -1.0)  # opposite
    assert stereo.correlation(0.0, 6.0) == pytest.approx(1 / 3, abs=1e-3)
    assert stereo.correlation(6.0, 8.0) == -1 and not stereo.blocks, "what is past is forgotten"


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16", "PCM_U8"])
def test_each_segment_has_that_of_its_own_stretch(tmp_path, subtype):
    a, b, _ = NOISE
    half = len(a) // 2
    right = np.concatenate([a[:half], -a[half:]])  # the same for ten seconds, then the opposite
    soundfile.write(tmp_path / "x.wav", np.stack([a, right], 1), 44_100, subtype=subtype)
    decoder = Decode(segment_s=10.0).open()
    found = [
        item.stats["stereo"] for item in decoder([source(tmp_path / "x.wav")]) if isinstance(item, Sample)
    ]
    decoder.close()
    assert found == pytest.approx([1, -1], abs=0.02), "blocks of five seconds do not fall on whole frames"


def test_a_mono_source_has_none(tmp_path, decoder):
    soundfile.write(tmp_path / "x.wav", NOISE[0][:44_100], 44_100)
    first, _ = decoder([source(tmp_path / "x.wav")])
    assert first.stats["stereo"] is None and first.stats["lufs"] is not None
