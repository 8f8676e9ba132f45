"""Recordings read back from an audio tar; what is not 24 kHz mono at 16 bits is refused by name."""

import io

import numpy as np
import pytest
import soundfile

from stages.shards.column import ColumnWriter
from stages.shards.waves import waves


def tar_of(tmp_path, kind: str, rate_hz: int, channels: int, subtype: str, samples: int = 9600):
    sound = np.random.default_rng(0).integers(-9000, 9000, (2 * samples, channels)).astype(np.int16)
    writer = ColumnWriter(tmp_path / "a.tar")
    for start in (0, samples):
        data = io.BytesIO()
        soundfile.write(data, sound[start : start + samples], rate_hz, format=kind.upper(), subtype=subtype)
        row = {"recording": "r", "start": start, "samples": samples, "frames": samples // 320}
        writer.add(f"r-{start:09d}", {kind: data.getvalue()}, row, {})
    writer.keep({})
    writer.finish()
    [wave] = waves(tmp_path / "a.tar", writer.index)
    return wave, sound[:, 0]


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_any_span_is_the_stored_samples_and_zeros_beyond(tmp_path, kind):
    wave, sound = tar_of(tmp_path, kind, 24_000, 1, "PCM_16")
    assert wave.samples == 19_200 and wave.rate_hz == 24_000
    read = wave.read(-100, 19_300)
    assert read.dtype == np.float32 and not read[:100].any() and not read[-100:].any()
    assert np.array_equal(read[100:-100] * 32768, sound)
    assert np.array_equal(wave.read(9_500, 9_700) * 32768, sound[9_500:9_700])


@pytest.mark.parametrize("kind, rate_hz, channels, subtype, seen", [
    ("wav", 44_100, 1, "PCM_16", "44100 Hz, 1 channels, 16 bits"),
    ("wav", 24_000, 2, "PCM_16", "24000 Hz, 2 channels, 16 bits"),
    ("wav", 24_000, 1, "PCM_24", "24000 Hz, 1 channels, 24 bits"),
    ("flac", 48_000, 1, "PCM_16", "48000 Hz, 1 channels, 16 bits"),
    ("flac", 24_000, 1, "PCM_24", "24000 Hz, 1 channels, PCM_24"),
])
def test_another_rate_channel_count_or_depth_is_named(tmp_path, kind, rate_hz, channels, subtype, seen):
    wave, _ = tar_of(tmp_path, kind, rate_hz, channels, subtype)
    with pytest.raises(ValueError, match=f"r-000000000 is stored at {seen}: labels are of 24000 Hz, 1 channel, 16 bits"):
        wave.read(0, 3200)
