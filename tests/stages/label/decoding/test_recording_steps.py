"""The steps from a file to int16 mono, one by one, in this process."""

import errno
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile

from stages.label.base import RejectRecording
from stages.label.decoding.recording import Decoding, File
from tests.stages.label.decoding.sounds import encode, tone


def opened(path, max_s=3600.0):
    return Decoding(File(str(path).encode()), max_s)


def blocks(path, max_s=3600.0):
    decoding, heads = opened(path, max_s), []
    found = list(decoding.blocks(heads.append))
    decoding.close()
    return decoding, found, heads


class TestBlocks:
    def test_a_block_is_five_seconds_and_only_the_last_is_shorter(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", tone(8_000, 13), 8_000)
        decoding, found, _ = blocks(tmp_path / "x.wav")
        assert [rate_hz for _, rate_hz in found] == [8_000] * 3
        first, second, last = (len(block) for block, _ in found)
        assert 40_000 <= first == second < 40_000 + 4_096 and first + second + last == 13 * 8_000
        assert decoding.decoded_s == 13.0 and decoding.changes == 0
        assert all(block.dtype == np.float32 for block, _ in found)

    def test_a_block_of_many_channels_is_bounded_by_its_values(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.zeros((140_000, 32), np.int16), 48_000, subtype="PCM_U8")
        _, found, _ = blocks(tmp_path / "x.wav")
        first, rest = (len(block) for block, _ in found)
        assert 1 << 22 <= 32 * first < 33 << 17 and first + rest == 140_000

    def test_how_alike_the_channels_are_is_told_of_each_stretch(self, tmp_path):
        wave = tone(8_000, 13, channels=2)
        wave[:, 1] *= -0.5
        soundfile.write(tmp_path / "x.wav", wave, 8_000, subtype="FLOAT")
        decoding, found, _ = blocks(tmp_path / "x.wav")
        ends = np.cumsum([len(block) for block, _ in found]) / 8_000
        assert [sums[1] for sums in decoding.channels] == pytest.approx(ends) and ends[-1] == 13.0
        assert [sums[0] for sums in decoding.channels] == pytest.approx([0.0, *ends[:-1]])
        assert (
            np.abs(np.concatenate([block for block, _ in found]) - 0.5 * (wave[:, 0] + wave[:, 1])).max()
            < 1e-6
        )
        soundfile.write(tmp_path / "x.wav", wave[:, :1], 8_000)
        assert blocks(tmp_path / "x.wav")[0].channels == []

    def test_the_longest_recording_allowed_is_allowed(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", tone(8_000, 6), 8_000)
        assert blocks(tmp_path / "x.wav", max_s=6.0)[0].decoded_s == 6.0
        with pytest.raises(RejectRecording, match="^longer than 0.00166639 h$"):
            blocks(tmp_path / "x.wav", max_s=5.999)

    def test_the_head_is_told_once_and_before_the_first_block(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", tone(8_000, 7, channels=2), 8_000, subtype="PCM_24")
        decoding, heads = opened(tmp_path / "x.wav"), []
        stream = decoding.blocks(heads.append)
        next(stream)
        assert heads == [
            {
                "source_rate_hz": 8_000, "source_channels": 2,
            "source_codec": "pcm_s24le", "source_container": "wav",
                "source_format": "s32", "header_s": 7.0, "other_tracks": 0,
            }
        ]  # fmt: skip
        list(stream)
        assert len(heads) == 1
        decoding.close()

    def test_a_length_is_taken_from_the_stream_else_from_the_container_else_unknown(self, tmp_path):
        path = encode(tmp_path / "x.mka", "pcm_s16le", tone(8_000, 3), 8_000, "mono")
        decoding, _, (head,) = blocks(path)
        assert decoding._stream.duration is None and head["header_s"] == pytest.approx(3.0, abs=0.1)
        path = encode(tmp_path / "x.flac", "flac", tone(8_000, 3), 8_000, "mono")
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0  # the header's count of samples, 36 bits
        data[22:26] = bytes(4)
        path.write_bytes(data)
        _, found, (head,) = blocks(path)
        assert head["header_s"] is None and sum(len(block) for block, _ in found) == 24_000

    def test_a_rate_that_changes_midway_ends_a_block_and_is_counted(self, tmp_path):
        parts = [
            encode(tmp_path / f"{rate}.mp3", "libmp3lame", tone(rate, 2), rate, "mono")
            for rate in (44_100, 48_000)
        ]
        (tmp_path / "x.mp3").write_bytes(b"".join(path.read_bytes() for path in parts))
        decoding, found, heads = blocks(tmp_path / "x.mp3")
        lengths = {}
        for block, rate_hz in found:
            lengths[rate_hz] = lengths.get(rate_hz, 0) + len(block)
        assert decoding.changes == len(found) - 1 == 1 and len(heads) == 1
        assert {rate_hz: samples / rate_hz for rate_hz, samples in lengths.items()} == pytest.approx(
            {44_100: 2.0, 48_000: 2.0}, abs=0.1
        )
        assert decoding.decoded_s == pytest.approx(
            sum(samples / rate_hz for rate_hz, samples in lengths.items())
        )


class TestCheckedFrames:
    @pytest.mark.parametrize("extension, codec, checked", [
        ("flac", "flac", True), ("wav", "pcm_s16le", False), ("m4a", "alac", False), ("mka", "flac", True),
    ])  # fmt: skip
    def test_flac_alone_is_asked_to_check_its_frames(self, tmp_path, extension, codec, checked):
        decoding = opened(encode(tmp_path / f"x.{extension}", codec, tone(8_000, 1), 8_000, "mono"))
        assert decoding._stream.codec_context.options == (
            {"err_detect": "crccheck+explode"} if checked else {}
        )
        assert decoding._stream.codec_context.thread_count == 1
        decoding.close()


class TestRefused:
    def test_the_decoders_last_words_are_told_only_if_they_are_about_this_recording(
        self, tmp_path, monkeypatch
    ):
        soundfile.write(tmp_path / "x.wav", tone(8_000), 8_000)
        logged = [3, (16, "flac", "of another file\n")]
        monkeypatch.setattr(av.logging, "get_last_error", lambda: tuple(logged))
        decoding = opened(tmp_path / "x.wav")
        error = av.error.InvalidDataError(1, "torn")
        assert decoding._message(error) == "torn"
        logged[:] = 4, (16, "flac", "invalid residual\n")
        assert decoding._message(error) == "torn (flac: invalid residual)"
        logged[:] = 0, None
        assert decoding._message(error) == "torn"
        decoding.close()

    def test_memory_that_runs_out_while_decoding_is_nobodys_damage(self, tmp_path):
        class Packet:
            size = 9

            def decode(self):
                raise av.error.MemoryError(errno.ENOMEM, "memory")

        soundfile.write(tmp_path / "x.wav", tone(8_000), 8_000)
        decoding = opened(tmp_path / "x.wav")
        decoding._demux = lambda: iter([Packet()])
        with pytest.raises(MemoryError):
            list(decoding.blocks(lambda facts: None))
        decoding.close()

    def test_a_broken_packet_is_as_many_as_its_bytes_are_of_whole_ones(self, tmp_path):
        class Packet:
            pos = 0

            def __init__(self, size):
                self.size = size

            def decode(self):
                if self.size == 9:
                    raise av.error.InvalidDataError(1, "torn")
                return []

        soundfile.write(tmp_path / "x.wav", tone(8_000), 8_000)
        decoding = opened(tmp_path / "x.wav")
        decoding._demux = lambda: iter([Packet(1), Packet(1), Packet(9)])
        assert list(decoding._frames()) == []
        assert (decoding.packets, decoding.damaged) == (2 + 9, 9)
        decoding.close()

    @pytest.mark.parametrize("rate_hz, channels", [(0, 1), (8_000, 0)])
    def test_a_rate_of_nothing_or_no_channel_is_refused(self, tmp_path, rate_hz, channels):
        class Frame:
            sample_rate, pts, samples = rate_hz, None, 8
            layout, format = SimpleNamespace(nb_channels=channels), av.AudioFormat("s16")
            time_base = None

        soundfile.write(tmp_path / "x.wav", tone(8_000), 8_000)
        decoding = opened(tmp_path / "x.wav")
        decoding._frames = lambda: iter([Frame()])
        with pytest.raises(RejectRecording, match=f"^{rate_hz} Hz, {channels} channels$"):
            list(decoding.blocks(lambda facts: None))
        decoding.close()


class TestFile:
    @pytest.fixture
    def file(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc")
        opened = File(bytes(tmp_path / "x"))
        yield opened
        opened.close()

    def test_it_is_read_where_it_is_sought(self, file):
        assert (file.seek(1), file.read(9), file.tell(), file.seek(-1, 2), file.read(9)) == (
            1,
            b"bc",
            3,
            2,
            b"c",
        )
        assert (file.seek(1), file.read(1), file.seek(-1, 1)) == (1, b"b", 1)
        assert file.seek(-9, 2) == -errno.EINVAL and file.error is None, (
            "before the beginning: a probe, no read error"
        )

    @pytest.mark.parametrize("method", ["read", "seek"])
    def test_a_read_error_is_remembered(self, file, method):
        class Dying:
            def read(self, count):
                raise OSError(errno.EIO, "disk")

            def seek(self, offset, whence):
                raise OSError(errno.EIO, "disk")

        file._file = Dying()
        with pytest.raises(OSError) as raised:
            getattr(file, method)(1)
        assert file.error is raised.value
