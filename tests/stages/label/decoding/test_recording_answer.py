"""What one request is answered with: messages of the recording, of its rejection, of its read errors."""

import errno
import json
import os

import numpy as np
import pytest
import soundfile

from stages.label.base import RejectRecording
from stages.label.decoding import recording
from stages.label.decoding.recording import answer, decode


def request(path, **values):
    return {"path": str(path), "rate_hz": 24_000, "resampler": "HQ", "max_s": 60.0} | values


def wav(path, seconds=2.0, rate_hz=24_000, channels=1):
    wave = np.random.default_rng(0).integers(-999, 999, (round(seconds * rate_hz), channels), np.int16)
    soundfile.write(path, wave, rate_hz, format="WAV", subtype="PCM_16")
    return path


def messages(asked):
    """[(kind, payload as bytes)] of one request."""
    sent = []
    decode(asked, lambda kind, payload: sent.append((kind, bytes(payload))))
    return sent


class TestDecode:
    def test_the_head_then_the_blocks_then_the_end(self, tmp_path):
        path = wav(tmp_path / "x.wav", 12)
        sent = messages(request(path))
        assert b"".join(kind for kind, _ in sent) == b"HBBBE"
        assert json.loads(sent[0][1])["source_rate_hz"] == 24_000
        assert json.loads(sent[-1][1]) == {"decoded_s": 12.0, "damaged_packets": 0, "changes": 0}
        heard = np.frombuffer(b"".join(payload for kind, payload in sent if kind == b"B"), "<i2")
        assert np.array_equal(heard, soundfile.read(path, dtype="int16")[0])

    def test_a_stretchs_channels_are_told_before_its_samples(self, tmp_path):
        sent = messages(request(wav(tmp_path / "x.wav", 12, channels=2)))
        assert b"".join(kind for kind, _ in sent) == b"HCBCBCBE"
        stretches = [json.loads(payload) for kind, payload in sent if kind == b"C"]
        assert [a[1] == b[0] for a, b in zip(stretches, stretches[1:], strict=False)] == [True, True]
        assert (stretches[0][0], stretches[-1][1]) == (0.0, 12.0)

    def test_the_length_told_is_that_of_the_source(self, tmp_path):
        sent = messages(request(wav(tmp_path / "x.wav", 1 / 3, rate_hz=48_000)))
        assert json.loads(sent[-1][1])["decoded_s"] == round(16_000 / 48_000, 6) == 0.333333

    @pytest.mark.parametrize("samples, reason", [
        (0, "0 samples decoded"),
        (1, "1 sample at 24 kHz: shorter than one label frame (320)"),
        (2, "2 samples at 24 kHz: shorter than one label frame (320)"),
        (319, "319 samples at 24 kHz: shorter than one label frame (320)"),
        (320, None),
    ])  # fmt: skip
    def test_less_than_one_label_frame_is_refused(self, tmp_path, samples, reason):
        asked = request(wav(tmp_path / "x.wav", samples / 24_000))
        if reason is None:
            assert messages(asked)[-1][0] == b"E"
            return
        with pytest.raises(RejectRecording) as refused:
            messages(asked)
        assert str(refused.value) == reason

    @pytest.mark.parametrize("reads", [0, 1, 2])
    def test_a_read_error_goes_before_whatever_libav_made_of_it(self, tmp_path, monkeypatch, reads):
        class Dying(recording.File):
            left = reads

            def read(self, count):
                if self.left == 0:
                    self.error = OSError(errno.EIO, "disk")
                    return b""  # which libav takes for the end
                self.left -= 1
                return super().read(count)

        monkeypatch.setattr(recording, "File", Dying)
        with pytest.raises(OSError) as raised:
            messages(request(wav(tmp_path / "x.wav", 12)))
        assert raised.value.errno == errno.EIO

    def test_nothing_stays_open(self, tmp_path, monkeypatch):
        path = wav(tmp_path / "x.wav")
        (tmp_path / "bad.wav").write_bytes(b"garbage" * 99)
        before = os.listdir("/proc/self/fd")
        files, closed, close = [], [], recording.Decoding.close
        opened = recording.File
        monkeypatch.setattr(recording, "File", lambda path: files.append(opened(path)) or files[-1])
        monkeypatch.setattr(recording.Decoding, "close", lambda decoding: closed.append(close(decoding)))
        messages(request(path))
        for bad in (request(tmp_path / "bad.wav"), request(path, max_s=1.0)):
            with pytest.raises(RejectRecording):
                messages(bad)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert [file._file.closed for file in files] == [True] * 3 and len(closed) == 2


class TestAnswer:
    @pytest.fixture
    def answered(self, monkeypatch):
        """Messages of one answer, where decoding ends by an exception."""

        def run(error):
            def fail(asked, send):
                send(b"B", b"before")
                raise error

            sent = []
            monkeypatch.setattr(recording, "decode", fail)
            answer({"path": "a"}, lambda kind, payload: sent.append((kind, payload)))
            return sent

        return run

    def test_a_refusal_and_a_read_error_are_told(self, answered):
        assert answered(RejectRecording("torn \udcff")) == [(b"B", b"before"), (b"R", b"torn \\udcff")]
        assert answered(OSError(errno.EIO, "disk"))[1:] == [(b"O", b'[5, "disk"]')]
        assert answered(OSError("words alone"))[1:] == [(b"O", b'[null, "words alone"]')]

    @pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError()])
    def test_any_other_error_is_passed_on(self, answered, error):
        with pytest.raises(type(error)):
            answered(error)

    def test_a_whole_recording_is_sent_as_it_is_decoded(self, tmp_path):
        asked, sent = request(wav(tmp_path / "x.wav")), []
        answer(asked, lambda kind, payload: sent.append((kind, bytes(payload))))
        assert sent == messages(asked)
