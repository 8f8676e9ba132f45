"""Statistics of samples, each against a signal whose value is known."""

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from stages.label.statistics.wave import bandwidth, levels, loudness, of_wave

RATE_HZ = 24_000


def int16(wave: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)


def sine(db: float, hz: float = 1000.0, seconds: float = 4.0) -> np.ndarray:
    """A sine whose RMS is `db` dBFS."""
    return 10 ** (db / 20) * 2**0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)


def low_passed(cutoff_hz: float, seconds: float = 8.0, rms: float = 0.1) -> np.ndarray:
    """White noise with nothing above `cutoff_hz`."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, rms, int(seconds * RATE_HZ)))
    spectrum[np.fft.rfftfreq(int(seconds * RATE_HZ), 1 / RATE_HZ) > cutoff_hz] = 0
    return np.fft.irfft(spectrum)


def test_levels_of_a_sine_of_minus_20_dbfs():
    assert levels(int16(sine(-20))) == pytest.approx(
        {"peak_db": -16.99, "rms_db": -20, "silence": 0, "clipping": 0, "dc": 0}, abs=0.01
    )


def test_levels_of_silence_and_clipping():
    wave = np.zeros(48_000, np.int16)
    assert levels(wave) == {"peak_db": -120, "rms_db": -120, "silence": 1, "clipping": 0, "dc": 0}
    wave[:12_000], wave[12_000:24_000] = 32767, -32768
    found = levels(wave)
    assert (found["silence"], found["clipping"], found["peak_db"]) == (0.5, 0.5, 0)


def test_a_60_db_frame_is_the_border():
    wave = np.full(480, 33, np.int16)  # 20 log10(33 / 32768) = -59.9
    wave[240:] = 32
    assert levels(wave)["silence"] == 0.5


def test_an_offset_is_found():
    assert levels(int16(sine(-20) + 0.05))["dc"] == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("db", [-40.0, -20.0, -6.0])
def test_a_sine_of_997_hz_reads_its_level(db):
    """BS.1770: a 997 Hz sine of 0 dBFS peak in one channel reads -3.01 LUFS; its RMS. EBU allows 0.1 LU."""
    assert loudness(int16(sine(db, 997))) == pytest.approx(db, abs=0.1)


class TestLoudnessIsTheReferenceLibrarys:
    def check(self, wave: np.ndarray) -> None:
        stored = int16(wave)
        reference = pyloudnorm.Meter(RATE_HZ).integrated_loudness(stored / 32768)
        assert loudness(stored) == pytest.approx(reference, abs=0.02)

    def test_of_music(self, music):
        wave, rate_hz = soundfile.read(music[1], frames=20 * 44_100)
        self.check(soxr.resample(wave.mean(1), rate_hz, RATE_HZ))

    @given(seed=st.integers(0, 2**32 - 1), seconds=st.floats(0.41, 6))
    def test_of_noise_that_comes_and_goes(self, seed, seconds):
        rng = np.random.default_rng(seed)
        steps = 10 ** (rng.uniform(-70, -6, 8) / 20)  # some below the gates
        # Whole steps of 100 ms: the reference also rounds half a block up, and then reads past the end.
        noise = rng.normal(0, 1, int(seconds * 10) * 2400)
        self.check(noise * np.repeat(steps, len(noise) // 8 + 1)[: len(noise)] * 0.5)

    def test_what_cannot_be_measured(self):
        assert loudness(np.ones(9_599, np.int16)) is None, "shorter than a block of 400 ms"
        assert loudness(np.zeros(96_000, np.int16)) == loudness(int16(sine(-75))) == -70, (
            "nothing passes the gate"
        )


@pytest.mark.parametrize("cutoff_hz", [2_000, 4_000, 8_000, 11_000])
@pytest.mark.parametrize("rms", [0.2, 0.001])
def test_bandwidth_of_low_passed_noise(cutoff_hz, rms):
    assert bandwidth(int16(low_passed(cutoff_hz, rms=rms))) == pytest.approx(cutoff_hz, abs=50)


def test_bandwidth_of_a_source_that_was_upsampled():
    narrow = np.random.default_rng(1).normal(0, 0.1, 8 * 11_025)
    assert bandwidth(int16(soxr.resample(narrow, 11_025, RATE_HZ))) == pytest.approx(5_512, abs=250)


def test_bandwidth_of_white_noise_silence_and_a_blip():
    assert bandwidth(int16(low_passed(12_000))) == 12_000
    assert bandwidth(np.zeros(48_000, np.int16)) == 0
    assert bandwidth(np.full(48_000, 9_000, np.int16)) == 0, "a constant is no sound"
    assert bandwidth(np.ones(2_047, np.int16)) is None


def test_every_statistic_has_a_value_for_the_shortest_segment():
    assert set(of_wave(np.ones(320, np.int16))) == {
        "peak_db",
        "rms_db",
        "silence",
        "clipping",
        "dc",
        "lufs",
        "bandwidth_hz",
    }
