"""Recordings that are damaged, or become something else midway."""

from pathlib import Path

import av
import numpy as np
import pytest

from stages.label.base import Kept, Rejected
from tests.stages.label.decoding.sounds import encode, outcome, sweep, tone

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"


def test_a_shape_that_changes_midway_goes_on(tmp_path, decoder):
    parts = b""
    for index, (rate_hz, layout) in enumerate([(44_100, "stereo"), (48_000, "mono")]):
        channels = av.AudioLayout(layout).nb_channels
        path = encode(
            tmp_path / f"{index}.mp3", "libmp3lame", tone(rate_hz, 4, channels=channels), rate_hz, layout
        )
        parts += path.read_bytes()
    (tmp_path / "both.mp3").write_bytes(parts)
    wave, last = outcome(decoder, tmp_path / "both.mp3")
    assert isinstance(last, Kept) and last.note["changes"] >= 1
    assert len(wave) == pytest.approx(8 * 24_000, abs=0.2 * 24_000)
    assert np.sqrt(np.mean(wave[120_000:180_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_chained_ogg_is_one_recording(tmp_path, decoder):
    parts = b""
    for _ in range(3):
        parts += encode(
            tmp_path / "part.ogg", "libvorbis", sweep(44_100, 20, 2), 44_100, "stereo"
        ).read_bytes()
    (tmp_path / "x.ogg").write_bytes(parts)
    wave, last = outcome(decoder, tmp_path / "x.ogg")
    assert isinstance(last, Kept), last
    assert last.note["damaged_packets"] == 0 and abs(len(wave) / 24_000 - 60) < 0.5
    middle = sweep(24_000, 20)[24_000:456_000, 0]
    # libav leaves some milliseconds of padding between the links.
    errors = [np.mean((wave[504_000 + lag :][: len(middle) : 9] - middle[::9]) ** 2) for lag in range(400)]
    assert np.sqrt(min(errors)) < 0.06


def test_a_link_of_another_rate_is_decoded_at_its_own(tmp_path, decoder):
    parts = b""
    for rate_hz in (44_100, 22_050):
        parts += encode(
            tmp_path / "part.ogg", "libvorbis", sweep(rate_hz, 5, 2), rate_hz, "stereo"
        ).read_bytes()
    (tmp_path / "x.ogg").write_bytes(parts)
    wave, last = outcome(decoder, tmp_path / "x.ogg")
    assert isinstance(last, Kept) and last.note["changes"] == 1, last
    assert len(wave) == pytest.approx(10 * 24_000, abs=100)
    again = sweep(24_000, 5)[24_000:96_000, 0]
    for link in (wave[:120_000], wave[120_000:]):
        assert np.corrcoef(link[24_000:96_000], again)[0, 1] > 0.99


class TestDamage:
    def flac(self, tmp_path, holes, seconds=60):
        """`holes` evenly spread places have 8 bytes struck out."""
        noise = np.random.default_rng(0).normal(0, 0.1, (seconds * 44_100, 1))
        path = encode(tmp_path / "x.flac", "flac", noise, 44_100, "mono")
        data = bytearray(path.read_bytes())
        for at in np.linspace(20_000, len(data) - 20_000, holes).astype(int):
            data[at : at + 8] = bytes(byte ^ 0xFF for byte in data[at : at + 8])
        path.write_bytes(data)
        return path

    def test_a_scratch_is_skipped_and_counted(self, tmp_path, decoder):
        wave, last = outcome(decoder, self.flac(tmp_path, holes=2))
        assert isinstance(last, Kept), last
        assert 1 <= last.note["damaged_packets"] <= 4
        assert 59 < len(wave) / 24_000 < 60

    def test_more_than_one_packet_in_a_hundred_is_too_many(self, tmp_path, decoder):
        _, last = outcome(decoder, self.flac(tmp_path, holes=60))
        assert isinstance(last, Rejected)
        assert " packets damaged: Invalid data found when processing input" in last.reason

    def test_pages_that_ogg_drops_without_a_word_are_missed(self, tmp_path, decoder):
        noise = np.random.default_rng(0).normal(0, 0.1, (30 * 44_100, 1))
        data = bytearray(encode(tmp_path / "x.ogg", "libvorbis", noise, 44_100, "mono").read_bytes())
        for at in np.linspace(20_000, len(data) - 20_000, 10).astype(int):
            data[at] ^= 0xFF
        (tmp_path / "x.ogg").write_bytes(data)
        _, last = outcome(decoder, tmp_path / "x.ogg")
        assert isinstance(last, Rejected) and "s missing" in last.reason

    @pytest.mark.parametrize("width", [300, 3_000])
    def test_struck_mp3_frames_are_counted_by_their_bytes(self, tmp_path, decoder, width):
        noise = np.random.default_rng(0).normal(0, 0.1, (60 * 44_100, 1))
        data = bytearray(encode(tmp_path / "x.mp3", "libmp3lame", noise, 44_100, "mono").read_bytes())
        for at in np.linspace(9_000, len(data) - 9_000, 5).astype(int):
            data[at : at + width] = bytes(width)
        (tmp_path / "x.mp3").write_bytes(data)
        wave, last = outcome(decoder, tmp_path / "x.mp3")
        assert isinstance(last, Kept if width == 300 else Rejected), last
        if isinstance(last, Kept):
            assert 5 <= last.note["damaged_packets"] <= 20 and len(wave) > 59 * 24_000

    def test_real_music_has_none(self, decoder):
        for path in sorted(QUICKSTART.glob("*.ogg")):
            _, last = outcome(decoder, path)
            assert last.note["damaged_packets"] == 0, path
