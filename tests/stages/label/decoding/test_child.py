"""A supervised child, seen from inside: which messages answer a request, and when it ends."""

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.label.decoding.child import serve
from stages.label.decoding.process import ANSWER
from tests.stages.label.decoding.sounds import encode
from tests.stages.label.decoding.test_recording_answer import request, wav

ROOT = Path(__file__).resolve().parents[4]


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
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
            sent = []
            serve(answered, lambda kind, payload: sent.append((kind, payload)))
            return sent

        return run

    def test_ready_is_said_once_and_each_request_answered_until_stdin_ends(self, served):
        assert served({}) == [(b"S", b"")]
        assert served({"a": b"1", "b": b"2"}) == [(b"S", b""), (b"E", b"1"), (b"E", b"2")]

    def test_after_memory_ran_out_nothing_more_is_answered(self, served):
        assert served({"a": MemoryError(), "b": b"never"}) == [(b"S", b""), (b"M", b"")]

    def test_any_other_error_is_a_bug_and_ends_the_process(self, served):
        with pytest.raises(ZeroDivisionError):
            served({"a": ZeroDivisionError()})


class TestProcess:
    def run(self, memory=4 << 30, parent=None, lines=b"", targets=(ANSWER,), **environment):
        arguments = [str(memory), str(os.getpid() if parent is None else parent), *targets]
        return subprocess.run(
            [sys.executable, "-m", "stages.label.decoding.child", *arguments], input=lines,
            capture_output=True,
            cwd=ROOT, env=os.environ | environment, timeout=120,
        )  # fmt: skip

    def test_messages_are_framed_by_kind_and_length_and_what_a_library_prints_is_none(self, tmp_path):
        (tmp_path / "overtone_printing.py").write_text(
            "import os, resource, signal\n"
            "def answer(decode, request, send):\n"
            "    os.write(1, b'noise of a library')\n"
            "    assert resource.getrlimit(resource.RLIMIT_AS) == (3 << 30, 3 << 30)\n"
            "    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
            "    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
            "    decode(request, send)\n"
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
            targets=("overtone_printing:answer", ANSWER),
            PYTHONPATH=str(tmp_path),
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
        arguments = [str(4 << 30), str(os.getpid()), ANSWER]
        command = [sys.executable, "-m", "stages.label.decoding.child", *arguments]
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, timeout=120
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, b"")
