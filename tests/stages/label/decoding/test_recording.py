"""What one recording becomes: every format by its real encoder, every odd file of the contract."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from stages.label.base import Kept, Rejected
from stages.label.decode import Decode, wav_bytes
from stages.label.decoding.samples import resampled
from tests.stages.label.decoding.sounds import encode, outcome, source, sweep, tone

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"


FORMATS = [  # extension, encoder, rate, layout
    ("flac", "flac", 44_100, "stereo"),
    ("m4a", "alac", 44_100, "stereo"),
    ("ogg", "libvorbis", 44_100, "stereo"),
    ("ogg", "libvorbis", 22_050, "mono"),
    ("opus", "libopus", 48_000, "stereo"),
    ("mp3", "libmp3lame", 44_100, "stereo"),
    ("mp3", "libmp3lame", 22_050, "mono"),
    ("m4a", "aac", 44_100, "stereo"),
    ("aac", "aac", 48_000, "mono"),
    ("webm", "libopus", 48_000, "mono"),
    ("mka", "pcm_s16le", 48_000, "mono"),
    ("wav", "pcm_s16le", 24_000, "mono"),
    ("wav", "pcm_u8", 8_000, "mono"),
    ("wav", "pcm_s24le", 96_000, "5.1"),
    ("wav", "pcm_s32le", 11_025, "stereo"),
    ("wav", "pcm_f32le", 384_000, "mono"),
    ("wav", "pcm_f64le", 192_000, "stereo"),
    ("wav", "pcm_mulaw", 8_000, "quad"),
    ("aiff", "pcm_s16be", 32_000, "stereo"),
]


@pytest.mark.parametrize("extension, codec, rate_hz, layout", FORMATS)
def test_each_format_keeps_length_pitch_level_and_alignment(
    tmp_path, decoder, extension, codec, rate_hz, layout
):
    channels = av.AudioLayout(layout).nb_channels
    path = encode(tmp_path / f"x.{extension}", codec, sweep(rate_hz, channels=channels), rate_hz, layout)
    wave, last = outcome(decoder, path)
    assert isinstance(last, Kept), last
    assert (last.note["source_rate_hz"], last.note["source_channels"]) == (rate_hz, channels)
    assert last.note["damaged_packets"] == 0
    expected = sweep(24_000)[:, 0]
    if extension == "aac":  # raw ADTS cannot say how much of its first frames is padding: 1024 samples
        wave = wave[512:]
    # libav does not trim the end of webm, of aac, nor of a Vorbis stream that fits one page.
    padding = 1_100 if "aac" in codec or extension == "webm" or codec == "libvorbis" else 1
    assert -1 <= len(wave) - 48_000 <= padding
    error = wave[4_800:43_200] - expected[4_800:43_200]  # away from the edges, where a codec may ring
    assert np.sqrt(np.mean(error**2)) < 0.06 * np.sqrt(np.mean(expected**2)), "as loud, and not a sample late"


def test_real_music_is_what_soundfile_reads(decoder):
    path = QUICKSTART / "stg1.ogg"
    wave, last = outcome(decoder, path)
    whole, rate_hz = soundfile.read(path, dtype="float32")
    whole = whole.mean(1)
    expected = np.clip(soxr.resample(whole, rate_hz, 24_000, "HQ"), -1, 32767 / 32768)
    assert len(wave) == len(expected) == last.note["samples"]
    assert np.abs(wave - expected).max() < 4 / 32768
    assert last.note["source_codec"] == "vorbis" and last.note["source_container"] == "ogg"


def test_channels_are_averaged(tmp_path, decoder):
    planes = np.stack([np.full(9_600, value) for value in (0.5, -0.1, 0.2)], 1)
    soundfile.write(tmp_path / "x.wav", planes, 24_000, subtype="FLOAT")
    wave, _ = outcome(decoder, tmp_path / "x.wav")
    assert wave == pytest.approx(0.2, abs=1 / 32768)


def test_an_8_khz_file_of_8_channels(tmp_path, decoder):
    soundfile.write(tmp_path / "x.wav", tone(8_000, channels=8), 8_000, subtype="PCM_16")
    wave, last = outcome(decoder, tmp_path / "x.wav")
    assert last.note["source_channels"] == 8 and len(wave) == 48_000


def test_what_lies_above_12_khz_leaves_no_alias(tmp_path, decoder):
    soundfile.write(tmp_path / "x.wav", tone(48_000, 4, hz=13_500, amplitude=0.9), 48_000, subtype="FLOAT")
    wave, _ = outcome(decoder, tmp_path / "x.wav")
    assert not wave[4_800:-4_800].any(), "all of it is below half a step of 16 bits"
    block = tone(48_000, 4, hz=13_500)[:, 0].astype(np.float32)
    heard = np.concatenate(list(resampled(iter([(block, 48_000)]), 24_000, "HQ")))[4_800:-4_800]
    assert 20 * np.log10(np.abs(heard).max() / 0.5) < -100


class TestOddFiles:
    """Each is kept, or rejected with the decoder's own words."""

    def reason(self, decoder, path):
        wave, last = outcome(decoder, path)
        assert isinstance(last, Rejected), last
        return last.reason

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"x",
            b"hello\n" * 999,
            np.random.default_rng(0).bytes(99_999),
            b"\0" * 50_000,
            b"RIFF\0\0\0\0WAVE",
        ],
        ids=["empty", "one byte", "text", "garbage", "zeros", "only RIFF"],
    )
    @pytest.mark.parametrize("name", ["x.mp3", "x.wav"])
    def test_no_audio_at_all(self, tmp_path, decoder, data, name):
        (tmp_path / name).write_bytes(data)
        reason = self.reason(decoder, tmp_path / name)
        assert "nvalid" in reason or "End of file" in reason or "0 samples" in reason, reason

    def test_a_picture(self, tmp_path, decoder):
        with av.open(str(tmp_path / "x.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 64
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert self.reason(decoder, tmp_path / "x.mp4").startswith("no audio stream")

    def test_a_playlist_opens_nothing_else(self, tmp_path, decoder):
        soundfile.write(tmp_path / "secret.wav", tone(24_000), 24_000)
        (tmp_path / "x.mp3").write_text("ffconcat version 1.0\nfile secret.wav\n")
        assert self.reason(decoder, tmp_path / "x.mp3")  # refused: not one sample of the other file

    @pytest.mark.parametrize("samples", [0, 1, 319])
    def test_shorter_than_a_frame(self, tmp_path, decoder, samples):
        soundfile.write(tmp_path / "x.wav", np.zeros(samples), 24_000)
        said = "1 sample" if samples == 1 else f"{samples} samples"
        end = " decoded" if samples == 0 else " at 24 kHz: shorter than one label frame (320)"
        assert self.reason(decoder, tmp_path / "x.wav") == said + end

    def test_one_frame_is_enough(self, tmp_path, decoder):
        soundfile.write(tmp_path / "x.wav", np.zeros(320), 24_000)
        *samples, last = decoder([source(tmp_path / "x.wav")])
        assert [sample.row["frames"] for sample in samples] == [1] and isinstance(last, Kept)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
    @pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
    def test_no_numbers(self, tmp_path, decoder, value, subtype):
        wave = tone(44_100, 8, channels=2)
        wave[300_000, 1] = value
        soundfile.write(tmp_path / "x.wav", wave, 44_100, subtype=subtype)
        assert self.reason(decoder, tmp_path / "x.wav") == "NaN or infinite samples"

    @pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg"])
    def test_truncated_yields_what_is_there(self, tmp_path, decoder, extension):
        codec = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "ogg": "libvorbis"}[extension]
        noise = np.random.default_rng(0).normal(0, 0.1, (10 * 44_100, 2))
        path = encode(tmp_path / f"whole.{extension}", codec, noise, 44_100, "stereo")
        data = path.read_bytes()
        (tmp_path / f"x.{extension}").write_bytes(data[: int(len(data) * 0.6)])
        wave, last = outcome(decoder, tmp_path / f"x.{extension}")
        assert isinstance(last, Kept), last
        assert 5 * 24_000 < len(wave) < 7 * 24_000
        assert last.note["decoded_s"] == pytest.approx(len(wave) / 24_000, abs=1e-3)

    def test_a_truncated_m4a_whose_table_of_contents_is_in_front(self, tmp_path, decoder):
        with av.open(str(tmp_path / "x.m4a"), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("aac", rate=44_100, layout="mono")
            frame = av.AudioFrame.from_ndarray(sweep(44_100, 10).T.astype(np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
            container.mux(stream.encode(frame) + stream.encode(None))
        data = (tmp_path / "x.m4a").read_bytes()
        (tmp_path / "x.m4a").write_bytes(data[: int(len(data) * 0.6)])
        wave, last = outcome(decoder, tmp_path / "x.m4a")
        assert isinstance(last, Kept), last
        assert 4 < len(wave) / 24_000 < 7

    def test_m4a_without_its_table_of_contents(self, tmp_path, decoder):
        data = encode(tmp_path / "whole.m4a", "aac", tone(44_100, 4), 44_100, "mono").read_bytes()
        (tmp_path / "x.m4a").write_bytes(data[: len(data) // 2])
        assert "moov atom not found" in self.reason(decoder, tmp_path / "x.m4a")

    @pytest.mark.parametrize("claimed", [0, 100, 0xFFFFFFFF])
    def test_headers_lie_about_length(self, tmp_path, decoder, claimed):
        data = bytearray(wav_bytes(np.zeros(48_000, np.int16)))
        data[40:44] = struct.pack("<I", claimed)
        (tmp_path / "x.wav").write_bytes(data)
        _, last = outcome(decoder, tmp_path / "x.wav")
        assert isinstance(last, Kept | Rejected)
        if claimed == 0xFFFFFFFF:
            assert last.note["samples"] == 48_000

    def test_a_wrong_extension(self, tmp_path, decoder):
        soundfile.write(tmp_path / "x.flac", tone(44_100), 44_100)
        (tmp_path / "x.flac").rename(tmp_path / "x.mp3")
        _, last = outcome(decoder, tmp_path / "x.mp3")
        assert last.note["source_codec"] == "flac"

    @pytest.mark.parametrize(
        "name", [b"a.b.c.wav", b"a b\nc.wav", b"caf\xe9 \xff.wav", b"file:x%03d.wav", b"-i.wav"]
    )
    def test_names(self, tmp_path, decoder, name):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(wav_bytes(np.zeros(2_400, np.int16)))
        *_, last = decoder([source(path)])
        assert isinstance(last, Kept)

    @pytest.mark.parametrize("rate_hz", [1, 100, 4_000_000])
    def test_absurd_rates(self, tmp_path, decoder, rate_hz):
        data = bytearray(wav_bytes(np.zeros(20_000, np.int16)))
        data[24:28] = struct.pack("<I", rate_hz)
        (tmp_path / "x.wav").write_bytes(data[: 44 + 40 * min(1000, rate_hz)])
        wave, last = outcome(decoder, tmp_path / "x.wav")
        assert isinstance(last, Kept | Rejected)

    def test_longer_than_allowed(self, tmp_path):
        short = Decode(max_recording_h=0.001).open()
        soundfile.write(tmp_path / "x.flac", np.zeros(8_000 * 60, np.int16), 8_000)
        assert self.reason(short, tmp_path / "x.flac") == "longer than 0.001 h"
        short.close()
