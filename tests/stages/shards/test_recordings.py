"""Recordings read back from an audio tar; what is not 24 kHz mono at 16 bits is refused by name."""

import io

import numpy as np
import pytest
import soundfile

from stages.shards.column import ColumnWriter
from stages.shards.recordings import stored_recordings


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
    [wave] = stored_recordings(tmp_path / "a.tar", writer.index)
    return wave, sound[:, 0]


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_any_span_is_the_stored_samples_and_zeros_beyond(tmp_path, kind):
    wave, sound = tar_of(tmp_path, kind, 24_000, 1, "PCM_16")
    assert wave.samples == 19_200 and wave.rate_hz == 24_000
    read = wave.read(-100, 19_300)
    assert read.dtype == np.float32 and not read[:100].any() and not read[-100:].any()
    assert np.array_equal(read[100:-100] * 32768, sound)
    assert np.array_equal(wave.read(9_500, 9_700) * 32768, sound[9_500:9_700])


@pytest.mark.parametrize(
    "kind, rate_hz, channels, subtype, seen",
    [
        ("wav", 44_100, 1, "PCM_16", "44100 Hz, 1 channels, 16 bits"),
        ("wav", 24_000, 2, "PCM_16", "24000 Hz, 2 channels, 16 bits"),
        ("wav", 24_000, 1, "PCM_24", "24000 Hz, 1 channels, 24 bits"),
        ("flac", 48_000, 1, "PCM_16", "48000 Hz, 1 channels, 16 bits"),
        ("flac", 24_000, 1, "PCM_24", "24000 Hz, 1 channels, PCM_24"),
    ],
)
def test_another_rate_channel_count_or_depth_is_named(tmp_path, kind, rate_hz, channels, subtype, seen):
    wave, _ = tar_of(tmp_path, kind, rate_hz, channels, subtype)
    with pytest.raises(
        ValueError, match=f"r-000000000 is stored at {seen}: labels are of 24000 Hz, 1 channel, 16 bits"
    ):
        wave.read(0, 3200)


def test_recordings_come_in_key_order_each_with_its_own_segments(tmp_path):
    sound = np.random.default_rng(1).integers(-9000, 9000, (5, 640)).astype(np.int16)
    parts = [("a", 0), ("a", 640), ("b", 0), ("c", 0), ("c", 640)]
    writer, waited = ColumnWriter(tmp_path / "a.tar"), []
    for (recording, start), part in zip(parts, sound, strict=True):
        data = io.BytesIO()
        soundfile.write(data, part, 24_000, format="WAV", subtype="PCM_16")
        writer.add(
            f"{recording}-{start:05d}",
            {"wav": data.getvalue()},
            {"recording": recording, "start": start, "samples": 640, "frames": 2},
            {},
        )
    writer.keep({})
    writer.finish()
    found = list(stored_recordings(tmp_path / "a.tar", writer.index, waited.append))
    assert [(wave.recording, wave.samples, len(wave.segments)) for wave in found] == [
        ("a", 1280, 2),
        ("b", 640, 1),
        ("c", 1280, 2),
    ]
    assert not waited
    for wave, first in zip(found, (0, 2, 3), strict=True):
        assert np.array_equal(
            wave.read(0, wave.samples) * 32768, np.concatenate(sound[first : first + len(wave.segments)])
        )
    ends = [row["offset"] + row["size"] for row in writer.index.to_pylist()]
    assert waited == ends, "the tar has arrived as far as what is read"
    del waited[:]
    assert found[0].read(640, 640).size == 0 and not waited
    found[0].read(639, 640)
    found[0].read(640, 641)
    assert waited == ends[:2]
    assert list(stored_recordings(tmp_path / "a.tar", writer.index.slice(0, 0))) == []


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_full_scale_is_one(tmp_path, kind):
    data = io.BytesIO()
    soundfile.write(
        data, np.array([-32768, 16384, 0] * 320, np.int16), 24_000, format=kind.upper(), subtype="PCM_16"
    )
    writer = ColumnWriter(tmp_path / "a.tar")
    writer.add(
        "r-0", {kind: data.getvalue()}, {"recording": "r", "start": 0, "samples": 960, "frames": 3}, {}
    )
    writer.finish()
    [wave] = stored_recordings(tmp_path / "a.tar", writer.index)
    assert wave.read(0, 3).tolist() == [-1.0, 0.5, 0.0] and wave.read(1, 2).tolist() == [0.5]
