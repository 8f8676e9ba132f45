"""The decoder's own process, seen from inside: which messages answer a request, and when it ends."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stages.label.base import RejectRecording
from stages.label.decoding import child
from stages.label.decoding.child import answer, serve
from tests.stages.label.decoding.sounds import encode

ROOT = Path(__file__).resolve().parents[4]


def request(path, **values):
    return {"path": str(path), "rate_hz": 24_000, "resampler": "HQ", "max_s": 60.0} | values


def wav(path, seconds=2.0, rate_hz=24_000, channels=1):
    wave = np.random.default_rng(0).integers(-999, 999, (round(seconds * rate_hz), channels), np.int16)
    soundfile.write(path, wave, rate_hz, format="WAV", subtype="PCM_16")
    return path


def messages(asked):
    """[(kind, payload as bytes)] of one request."""
    sent = []
    answer(asked, lambda kind, payload: sent.append((kind, bytes(payload))))
    return sent


class TestAnswer:
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
        class Dying(child.File):
            left = reads

            def read(self, count):
                if self.left == 0:
                    self.error = OSError(errno.EIO, "disk")
                    return b""  # which libav takes for the end
                self.left -= 1
                return super().read(count)

        monkeypatch.setattr(child, "File", Dying)
        with pytest.raises(OSError) as raised:
            messages(request(wav(tmp_path / "x.wav", 12)))
        assert raised.value.errno == errno.EIO

    def test_nothing_stays_open(self, tmp_path, monkeypatch):
        path = wav(tmp_path / "x.wav")
        (tmp_path / "bad.wav").write_bytes(b"garbage" * 99)
        before = os.listdir("/proc/self/fd")
        files, closed, close = [], [], child.Decoding.close
        opened = child.File
        monkeypatch.setattr(child, "File", lambda path: files.append(opened(path)) or files[-1])
        monkeypatch.setattr(child.Decoding, "close", lambda decoding: closed.append(close(decoding)))
        messages(request(path))
        for bad in (request(tmp_path / "bad.wav"), request(path, max_s=1.0)):
            with pytest.raises(RejectRecording):
                messages(bad)
        assert len(os.listdir("/proc/self/fd")) == len(before)
        assert [file._file.closed for file in files] == [True] * 3 and len(closed) == 2


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch):
        """Answers to lines of stdin, where each answer is what `outcomes` says of its path."""

        def run(outcomes):
            def answered(asked, send):
                if isinstance(outcome := outcomes[asked["path"]], BaseException):
                    raise outcome
                send(b"E", outcome)

            lines = b"".join(json.dumps({"path": path}).encode() + b"\n" for path in outcomes)
            monkeypatch.setattr(child, "answer", answered)
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
            sent = []
            serve(lambda kind, payload: sent.append((kind, payload)))
            return sent

        monkeypatch.delenv("OVERTONE_TEST_DECODER", raising=False)
        return run

    def test_ready_is_said_once_and_each_request_answered_until_stdin_ends(self, served):
        assert served({}) == [(b"S", b"")]
        assert served({"a": b"1", "b": b"2"}) == [(b"S", b""), (b"E", b"1"), (b"E", b"2")]

    def test_a_refusal_and_a_read_error_are_told_and_the_next_is_answered(self, served):
        sent = served({
            "a": RejectRecording("torn \udcff"), "b": OSError(errno.EIO, "disk"), "c": OSError("words alone"),
            "d": b"last",
        })  # fmt: skip
        assert sent[1:] == [
            (b"R", b"torn \\udcff"), (b"O", b'[5, "disk"]'), (b"O", b'[null, "words alone"]'),
            (b"E", b"last"),
        ]  # fmt: skip

    def test_after_memory_ran_out_nothing_more_is_answered(self, served):
        assert served({"a": MemoryError(), "b": b"never"}) == [(b"S", b""), (b"M", b"")]

    def test_any_other_error_is_a_bug_and_ends_the_process(self, served):
        with pytest.raises(ZeroDivisionError):
            served({"a": ZeroDivisionError()})


class TestProcess:
    def run(self, memory=4 << 30, parent=None, lines=b"", **environment):
        arguments = [str(memory), str(os.getpid() if parent is None else parent)]
        return subprocess.run(
            [sys.executable, "-m", "stages.label.decoding.child", *arguments], input=lines,
            capture_output=True,
            cwd=ROOT, env=os.environ | environment, timeout=120,
        )  # fmt: skip

    def test_messages_are_framed_by_kind_and_length_and_what_a_library_prints_is_none(self, tmp_path):
        (tmp_path / "overtone_printing.py").write_text(
            "import os, resource, signal\n"
            "def hook(path):\n"
            "    os.write(1, b'noise of a library')\n"
            "    assert resource.getrlimit(resource.RLIMIT_AS) == (3 << 30, 3 << 30)\n"
            "    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
            "    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        )
        (tmp_path / "bad.wav").write_bytes(b"garbage" * 99)
        lines = (
            json.dumps(request(wav(tmp_path / "x.wav")))
            + "\n"
            + json.dumps(request(tmp_path / "bad.wav"))
            + "\n"
        )
        done = self.run(
            3 << 30,
            lines=lines.encode(),
            PYTHONPATH=str(tmp_path),
            OVERTONE_TEST_DECODER="overtone_printing:hook",
        )
        assert done.returncode == 0 and done.stderr.count(b"noise of a library") == 2, done.stderr
        kinds, data = b"", done.stdout
        while data:
            kind, length = struct.unpack_from("<cI", data)
            assert len(data) >= 5 + length
            if kind == b"B":
                assert length == 2 * 48_000
            kinds, data = kinds + kind, data[5 + length :]
        assert kinds == b"SHBER"

    def test_the_decoders_words_are_in_the_reason_and_not_in_what_a_crash_would_say(self, tmp_path):
        noise = np.random.default_rng(0).normal(0, 0.1, (40_000, 1))
        path = encode(tmp_path / "x.flac", "flac", noise, 8_000, "mono")
        data = bytearray(path.read_bytes())
        for at in range(9_000, len(data) - 9_000, 9_000):
            data[at : at + 8] = bytes(byte ^ 0xFF for byte in data[at : at + 8])
        path.write_bytes(data)
        done = self.run(lines=json.dumps(request(path)).encode() + b"\n")
        assert (done.returncode, done.stderr) == (0, b"")
        words = b" packets damaged: Invalid data found when processing input (flac: CRC error at PTS "
        assert words in done.stdout

    def test_a_child_of_another_parent_ends_at_once(self):
        done = self.run(parent=1)
        assert (done.returncode, done.stdout) == (0, b"")

    def test_it_ends_quietly_when_nobody_listens(self):
        command = [sys.executable, "-m", "stages.label.decoding.child", str(4 << 30), str(os.getpid())]
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, timeout=120
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")
