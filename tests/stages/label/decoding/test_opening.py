"""How a file is opened: its default track, what its header promises, and what its bytes can hold."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from stages.label.decoding.opening import (
    counted_frames,
    header_s,
    likely_s,
    open_audio,
    refuse_misread,
    whole,
)
from tests.wild.pieces import id3v2, libav, sound, tracks

RATE_HZ = 44_100
NOISE = np.random.default_rng(0).normal(0, 0.1, (3 * RATE_HZ, 2)).astype(np.float32)


def opened(data: bytes):
    view = whole(io.BytesIO(data), len(data))
    return *open_audio(view), view


@pytest.mark.parametrize("default", [0, 1, 2])
def test_the_default_track_is_the_one(default):
    waves = [NOISE[: RATE_HZ // 2]] * 3
    container, stream, others, _ = opened(tracks(waves, "mp4", "aac", default=default))
    assert (stream.index, others) == (default, 2)
    container.close()


def test_tags_before_it_are_skipped():
    container, stream, others, view = opened(id3v2(b"x" * 999) + sound(NOISE, "WAV", "PCM_16"))
    assert (container.format.name, others) == ("wav", 0) and header_s(container, stream, view) == 3.0
    container.close()


def test_no_audio_is_refused_in_words():
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as file:
        stream = file.add_stream("rawvideo", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
    with pytest.raises(ValueError, match="^no audio stream in this matroska,webm$"):
        opened(out.getvalue())


class TestCounted:
    def test_a_first_frame_that_counts_says_how_many_follow(self):
        for mark in (b"Xing", b"Info"):
            assert counted_frames(b"\xff\xfb" + bytes(34) + mark + b"\0\0\0\x0f\0\0\1\2") == 258
            assert counted_frames(mark + b"\0\0\0\x0e\0\0\1\2") == 0, "its flags say that it does not"
        assert counted_frames(b"VBRI" + bytes(10) + b"\0\0\2\1") == 513
        assert counted_frames(b"") == counted_frames(b"Xing") == 0

    @pytest.mark.parametrize(
        "rate_hz, samples", [(44_100, 1152), (32_000, 1152), (24_000, 576), (8_000, 576)]
    )
    def test_a_length_is_that_many_frames(self, rate_hz, samples):
        data = libav(NOISE[:rate_hz, :1], "mp3", "libmp3lame", rate_hz)
        container, stream, _, view = opened(data)
        at = view.tell()
        found = header_s(container, stream, view)
        assert found == pytest.approx(1.0, abs=0.2) and (found * rate_hz / samples) % 1 == pytest.approx(
            0, abs=1e-6
        )
        assert view.tell() == at, "libav goes on where it was"
        container.close()

    def test_without_it_libav_only_guesses(self):
        muxer = {"write_xing": "0", "id3v2_version": "0"}
        container, stream, _, view = opened(libav(NOISE, "mp3", "libmp3lame", muxer=muxer))
        assert header_s(container, stream, view) is None
        seconds, taken_from = likely_s(container, stream, view)
        assert seconds == pytest.approx(3.0, abs=0.1) and taken_from == "size"
        container.close()


def fake(codec, duration_s, size, rate_hz=44_100, channels=2, bit_rate=None, container="x"):
    kind = SimpleNamespace(canonical_name=codec, name=codec)
    context = SimpleNamespace(codec=kind, sample_rate=rate_hz, channels=channels, bit_rate=bit_rate)
    stream = SimpleNamespace(codec_context=context, duration=None, time_base=None)
    stated = None if duration_s is None else int(duration_s * 1_000_000)
    return (
        SimpleNamespace(duration=stated, format=SimpleNamespace(name=container)),
        stream,
        SimpleNamespace(size=size),
    )


class TestLikely:
    @pytest.mark.parametrize(
        "codec, least",
        [
            ("pcm_s16le", 44_100 * 2 * 16), ("pcm_f32be", 44_100 * 2 * 32), ("pcm_mulaw", 44_100 * 2 * 8),
            ("mp3", 8_000), ("mp2", 8_000), ("ac3", 32_000), ("opus", 500), ("aac", 500), ("flac", 2_000),
        ],
    )  # fmt: skip
    def test_a_header_is_believed_up_to_what_the_bytes_can_hold(self, codec, least):
        size = 1_000_000
        most = 8 * size / least
        assert likely_s(*fake(codec, most, size)) == (pytest.approx(most, abs=1e-5), "header")
        seconds, taken_from = likely_s(*fake(codec, 1.06 * most + 1, size))
        assert taken_from == "size" and 0 < seconds <= most

    @pytest.mark.parametrize(
        "codec, bit_rate, seconds",
        [
            ("mp3", 64_000, 125), ("opus", None, 8e6 / 96_000), ("vorbis", None, 8e6 / 112_000),
            ("flac", None, 8e6 / 700_000), ("ape", None, 8e6 / 700_000), ("wmav2", None, 62.5),
            ("pcm_s16le", None, 8e6 / 44_100 / 32),
        ],
    )  # fmt: skip
    def test_an_unknown_length_is_estimated_from_the_size(self, codec, bit_rate, seconds):
        assert likely_s(*fake(codec, None, 1_000_000, bit_rate=bit_rate)) == (pytest.approx(seconds), "size")

    def test_what_says_no_rate_is_no_reason_to_fail(self):
        assert likely_s(*fake("pcm_s16le", None, 16_000, rate_hz=0)) == (1.0, "size")


class TestValidBits:
    """libav reads samples with fewer valid bits than they take as if they lay side by side."""

    @staticmethod
    def wav(valid=24, align=None, bytes_per_s=None):
        data = bytearray(sound(NOISE, "WAVEX", "PCM_32"))
        form = data.index(b"fmt ") + 8
        data[form + 18 : form + 20] = valid.to_bytes(2, "little")
        if align is not None:
            data[form + 12 : form + 14] = align.to_bytes(2, "little")
        if bytes_per_s is not None:
            data[form + 8 : form + 12] = bytes_per_s.to_bytes(4, "little")
        container, stream, _, view = opened(bytes(data))
        at = view.tell()
        try:
            refuse_misread(container, stream, view)
        finally:
            assert view.tell() == at, "libav goes on where it was"
            container.close()

    @pytest.mark.parametrize("valid", [24, 20])
    def test_such_a_file_is_refused(self, valid):
        with pytest.raises(ValueError, match="^24 valid bits in samples of 32: save it with 32 valid bits$"):
            self.wav(valid)

    def test_all_bits_are_fine_and_so_is_a_header_that_is_only_careless(self):
        self.wav(valid=32)
        self.wav(align=0)
        self.wav(bytes_per_s=1)

    @pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
    def test_every_usual_kind_passes(self, subtype):
        container, stream, _, view = opened(sound(NOISE, "WAV", subtype))
        refuse_misread(container, stream, view)
        container.close()
