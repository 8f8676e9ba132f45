"""One child as its parent sees it: real processes, that say something else than a decoder would."""

import fcntl
import itertools
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.label.base import ReadError
from stages.label.decoding import process
from stages.label.decoding import supervised as module
from stages.label.decoding.process import ANSWER, start_decoder
from stages.label.decoding.supervised import DecoderDied, SupervisedChild


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script in the place of the interpreter that children run."""

    def write(script):
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\nready() { printf 'S\\0\\0\\0\\0'; }\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(program))

    return write


@pytest.fixture
def child(program):
    """Start a child that runs a script, and wait until it is ready."""
    children = []

    def start(script):
        program(script)
        children.append(SupervisedChild(1.5, "some:function", "another:function"))
        assert children[-1].receive(30.0) == (b"S", b"")
        return children[-1]

    start.children = children
    yield start
    for one in children:
        one.end()


class TestChild:
    def test_it_is_told_its_memory_and_its_parent_and_shields_its_imports(self, child, monkeypatch, tmp_path):
        monkeypatch.setenv("PYTHONPATH", "/theirs")
        child(
            f'echo "$*" "$PYTHONPATH" "$PYTHONSAFEPATH" "$OPENBLAS_NUM_THREADS" "$OMP_NUM_THREADS" > '
            f"{tmp_path}/told; ready; cat"
        )
        told = (tmp_path / "told").read_text().split()
        assert told == [
            "-m",
            "stages.label.decoding.child",
            str(3 << 29),
            str(os.getpid()),
            "some:function",
            "another:function",
            f"{module.ROOT}:/theirs",
            *"111",
        ]
        assert (module.ROOT / "stages" / "label").is_dir()

    def test_a_message_arrives_whole_however_it_is_cut(self, child):
        one = child(
            "ready; printf 'B'; sleep 0.05; printf '\\3\\0\\0\\0a'; sleep 0.05; printf 'bcE\\0\\0\\0\\0'; cat"
        )
        assert one.alive()
        assert [one.receive(30.0), one.receive(30.0)] == [(b"B", b"abc"), (b"E", b"")]

    def test_what_does_not_come_in_time_is_a_hang(self, child):
        one = child("ready; printf 'B\\3\\0\\0\\0a'; cat")
        since = time.monotonic()
        with pytest.raises(DecoderDied, match="^decoder hung: no audio for 0.2 s$") as death:
            one.receive(0.2)
        assert 0.2 <= time.monotonic() - since < 5 and not death.value.outside

    def test_whose_time_is_over_is_not_waited_for(self, child):
        one = child("ready; exec sleep 5")
        with pytest.raises(DecoderDied, match="^decoder hung"):
            one.receive(-1.0)

    @pytest.fixture
    def unignored(self):
        """A test run in the background, or by nohup, ignores these, and so would its children."""
        numbers = (signal.SIGHUP, signal.SIGINT)
        before = [signal.signal(number, signal.default_int_handler) for number in numbers]
        yield
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

    @pytest.mark.parametrize("script, words, outside", [
        ("exit 3", "decoder crashed: exit 3", False),
        ("exit 0", "decoder crashed: exit 0", False),
        ("printf 'first\\n last \\n\\n' >&2; exit 3", "decoder crashed: last", False),
        *((f"kill -{number} $$", f"decoder crashed: signal {number}", False)
            for number in (11, 7, 6, 4, 8, 31, 5)),
        *((f"kill -{number} $$", f"decoder crashed: signal {number}", True) for number in (9, 15, 1, 2)),
    ])  # fmt: skip
    def test_how_it_died_is_told(self, child, unignored, script, words, outside):
        one = child("ulimit -c 0; ready; read line; " + script)
        one.send({})
        with pytest.raises(DecoderDied) as death:
            one.receive(30.0)
        assert (str(death.value), death.value.outside) == (words, outside)
        assert not one.alive()
        with pytest.raises(DecoderDied):
            for _ in itertools.repeat(None, 100):
                one.send({})  # into a closed pipe

    def test_it_closed_its_pipe_and_lives_on(self, child, monkeypatch):
        one = child("ready; exec >&-; exec sleep 60")
        wait = one.process.wait
        monkeypatch.setattr(one.process, "wait", lambda timeout=None: wait(timeout and 0.1))
        with pytest.raises(DecoderDied, match="^decoder crashed: closed its pipe$"):
            one.receive(30.0)

    def test_an_ended_one_is_gone_and_its_pipes_are_closed(self, child):
        process = child("ready; exec sleep 60").process
        assert Path("/proc", str(process.pid)).exists()
        child.children[0].end()
        assert not Path("/proc", str(process.pid)).exists()
        assert process.stdin.closed and process.stdout.closed

    def test_only_the_end_of_what_it_said_is_read(self, child):
        one = child("ready; read line; head -c 9000 /dev/zero | tr '\\0' x >&2; exit 1")
        one.send({})
        with pytest.raises(DecoderDied) as death:
            one.receive(30.0)
        assert str(death.value) == "decoder crashed: " + "x" * 4096


class TestStartDecoder:
    @pytest.fixture
    def started(self, program, monkeypatch):
        """Start a decoder that runs a script. Those that did not start are ended by the test."""
        children, real = [], SupervisedChild

        def start(script):
            program(script)
            return start_decoder(1.5)

        def listed(memory_gb, *targets):
            assert (memory_gb, targets) == (1.5, (ANSWER,))
            children.append(real(memory_gb, *targets))
            return children[-1]

        monkeypatch.delenv("OVERTONE_TEST_DECODER", raising=False)
        monkeypatch.setattr(process, "SupervisedChild", listed)
        yield start
        for one in children:
            one.end()

    @pytest.mark.parametrize("kind", "RT")
    def test_another_first_word_is_a_bug(self, started, kind):
        with pytest.raises(AssertionError):
            started(f"printf '{kind}\\0\\0\\0\\0'; exec sleep 5")

    def test_its_pipe_holds_four_blocks(self, started):
        with open("/proc/sys/fs/pipe-max-size") as limit:
            allowed = int(limit.read())
        assert fcntl.fcntl(started("ready; exec sleep 5").fileno(), fcntl.F_GETPIPE_SZ) == min(
            1 << 20, allowed
        )

    @pytest.mark.parametrize(
        "script", ["echo 'no such decoder' >&2; exit 1", "echo 'no such decoder' >&2; cat"]
    )
    def test_one_that_is_never_ready_is_nobodys_fault_but_the_machines(self, started, monkeypatch, script):
        assert module.START_S == 120.0
        monkeypatch.setattr(process, "START_S", 0.5)
        with pytest.raises(
            ReadError, match="the decoder process does not start .decoder .*: no such decoder$"
        ):
            started(script)

    def test_one_that_does_not_start_is_ended(self, started, monkeypatch):
        processes, popen = [], subprocess.Popen

        def start(*arguments, **options):
            processes.append(popen(*arguments, **options))
            return processes[-1]

        monkeypatch.setattr(module.subprocess, "Popen", start)
        monkeypatch.setattr(process, "START_S", 0.1)
        with pytest.raises(ReadError):
            started("exec sleep 60")
        assert [process.returncode for process in processes] == [-signal.SIGKILL]
