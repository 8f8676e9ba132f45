"""Statistics of constant-Q frames, against tones of known pitch, and fingerprints against real encoders."""

import numpy as np
import pytest
import soundfile
import soxr
import torch

from stages.label.statistics.pitch import fingerprint, of_cqt
from stages.signal.cqt import ConstantQ, CqtSpec
from tests.stages.label.decoding.sounds import encode, outcome

RATE_HZ = 24_000


@pytest.fixture(scope="module")
def cqt():
    transform = ConstantQ(CqtSpec())
    context = transform.spec.context_samples

    def frames_TF(wave: np.ndarray) -> np.ndarray:
        padded = torch.from_numpy(np.pad(wave.astype(np.float32), context))[None]
        return transform.frames(padded, context, len(wave) // 320)[0].numpy()

    return frames_TF


def stats(frames_TF: np.ndarray, number: int = 0) -> dict:
    return of_cqt(frames_TF, frames_TF, 32.7, 48, number)[0]


def tone(hz: float, seconds: float = 5.0) -> np.ndarray:
    return 0.1 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)


@pytest.mark.parametrize("cents", [-45, -20, 0, 12, 20, 40])
def test_440_hz_and_some_cents(cqt, cents):
    found = stats(cqt(tone(440 * 2 ** (cents / 1200))))
    assert found["tuning_cents"] == pytest.approx(cents, abs=1)
    assert found["tuning_strength"] > 0.5


def test_a_chord_of_one_tuning_agrees_and_noise_does_not(cqt):
    chord = sum(tone(110 * 2 ** ((n + 0.2) / 12)) for n in (0, 4, 7, 12, 19, 28))
    found = stats(cqt(chord))
    assert found["tuning_cents"] == pytest.approx(20, abs=2) and found["tuning_strength"] > 0.5
    assert stats(cqt(np.random.default_rng(0).normal(0, 0.1, 10 * RATE_HZ)))["tuning_strength"] < 0.1


@pytest.mark.parametrize("octave", range(7))
def test_a_tone_lies_in_its_octave(cqt, octave):
    octaves = stats(cqt(tone(32.7 * 2 ** (octave + 0.5))))["cqt_octaves"]
    assert len(octaves) == 7 and np.argmax(octaves) == octave
    assert octaves[octave] > 100 * (sum(octaves) - octaves[octave])


def test_sums_are_of_the_columns_own_values_and_octaves_of_linear_ones(cqt):
    linear = cqt(tone(440))
    log = np.log(np.maximum(linear, 1e-6))
    of_linear, _ = of_cqt(linear, linear, 32.7, 48, 0)
    of_log, sums = of_cqt(log, linear, 32.7, 48, 0)
    assert sums == pytest.approx(
        np.stack([log.sum(0, dtype=np.float64), np.square(log, dtype=np.float64).sum(0)])
    )
    assert (
        of_log["cqt_mean"] == pytest.approx(log.mean(dtype=np.float64), rel=1e-5)
        and of_log["cqt_max"] == log.max()
    )
    for same in ("cqt_octaves", "tuning_cents", "fingerprint"):
        assert of_log[same] == of_linear[same]


def test_silence_and_short_segments_have_no_pitch():
    found = stats(np.zeros((75, 336), np.float32))
    assert (found["tuning_cents"], found["fingerprint"], found["cqt_octaves"]) == (None, None, [0.0] * 7)
    assert stats(np.ones((16, 336), np.float32))["fingerprint"] is None
    assert stats(np.zeros((0, 336), np.float32))["cqt_mean"] == 0
    assert stats(np.ones((75, 336), np.float32), number=4)["fingerprint"] is None, (
        "four of a recording are enough"
    )


def bits_apart(a: str, b: str) -> int:
    return (int(a, 16) ^ int(b, 16)).bit_count()


def test_mp3_and_opus_of_the_same_music_are_close_and_other_music_is_not(cqt, music, tmp_path, decoder):
    prints = {}
    for path in music[:3]:
        wave, rate_hz = soundfile.read(path, start=20 * 44_100, frames=12 * 44_100)
        wave = soxr.resample(wave, rate_hz, 48_000)
        for extension, codec, gain, bit_rate in (
            ("flac", "flac", 1, "0"),
            ("mp3", "libmp3lame", 0.5, "128000"),
            ("opus", "libopus", 0.8, "64000"),
        ):
            options = {} if codec == "flac" else {"b": bit_rate}
            coded = encode(
                tmp_path / f"{path.stem}.{extension}", codec, wave * gain, 48_000, "stereo", **options
            )
            prints[path.stem, extension] = fingerprint(cqt(outcome(decoder, coded)[0]), 48)
    for (stem, _), own in prints.items():
        for (other, _), theirs in prints.items():
            if stem == other:
                assert bits_apart(own, theirs) < 30, "of 192"
            else:
                assert bits_apart(own, theirs) > 60
