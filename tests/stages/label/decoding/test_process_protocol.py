"""The parent's side of the protocol: attempts, patience and what is handed on, with children that follow a
script."""

import contextlib
import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from stages.label.base import ReadError, RejectRecording
from stages.label.decode import Decode
from stages.label.decoding import process as module
from stages.label.decoding.process import DecoderDied, DecoderProcess
from tests.stages.label.decoding.sounds import source

REQUEST = {"rate_hz": 24_000, "resampler": "HQ", "max_s": 60.0}
END = (b"E", b'{"decoded_s": 1}')
CRASH, KILL = (
    DecoderDied("decoder crashed: signal 11", -11),
    DecoderDied("decoder crashed: signal 9", -9),
)


def block(value, seconds=1.0):
    return b"B", bytearray(np.full(round(24_000 * seconds), value, np.int16).tobytes())


class Scripted:
    """A child that answers each request by the next of its scripts: messages, deaths, or (seconds waited,
    message)."""

    def __init__(self, scripts, clock):
        self.requests, self.ended, self._scripts, self._clock, self._dead = [], 0, scripts, clock, False

    def alive(self):
        return not self._dead

    def send(self, request):
        self.requests.append(request)
        self._script = iter(self._scripts.pop(0))

    def receive(self, patience_s):
        self.patience_s = patience_s
        step = next(self._script)
        if isinstance(step, DecoderDied):
            self._dead = True
            raise step
        if isinstance(step[0], float):
            self._clock[0] += step[0]
            step = step[1]
        return step

    def end(self):
        self.ended += 1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Decode one file by scripted children, the n-th of which follows the n-th list of scripts."""
    path = tmp_path / "x.wav"
    path.write_bytes(b"bytes")
    clock = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Run:
        def __init__(self, *scripts, stall_s=10.0):
            self.process, self.facts, self.children, self.heard, self.told = (
                DecoderProcess(stall_s, 2.5),
                {},
                [],
                [],
                [],
            )
            todo = [list(script) for script in scripts]

            def start(memory_gb):
                assert memory_gb == 2.5
                self.children.append(Scripted(todo.pop(0), clock))
                return self.children[-1]

            monkeypatch.setattr(module, "start_decoder", start)

        def __call__(self):
            self.heard, self.told = [], []
            for found in self.process.decode(
                source(path), os.fsencode(path), REQUEST, self.facts, lambda *a: self.told.append(a)
            ):
                self.heard.append(int(found[0]))
            return self.heard

    Run.path, Run.clock = path, clock
    return Run


class TestAttempts:
    def test_what_the_child_says_is_handed_on(self, run):
        one = run([[(b"H", b'{"source_rate_hz": 8}'), (b"C", b"[0, 1, 2, 3, 4]"), block(1), block(2), END]])
        assert one() == [1, 2] and one.told == [(0, 1, 2, 3, 4)]
        assert one.facts == {"source_rate_hz": 8, "decoded_s": 1, "source_sha256": source_sha(one.path)}
        (child,) = one.children
        assert child.requests == [REQUEST | {"path": str(one.path)}]
        assert child.patience_s == 10.0 and child.ended == 0

    def test_a_child_serves_on(self, run):
        one = run([[block(1), END], [block(2), END]])
        assert (one(), one(), len(one.children)) == ([1], [2], 1)

    @pytest.mark.parametrize("death", [CRASH, KILL])
    def test_one_death_is_forgiven_and_blocks_are_handed_on_once(self, run, death):
        one = run([[block(1), block(2), death]], [[block(1), block(2), block(3), END]])
        assert one() == [1, 2, 3]
        assert [child.ended for child in one.children] == [1, 0]

    def test_one_death_of_each_kind_is_forgiven(self, run):
        one = run([[block(1), CRASH]], [[KILL]], [[block(1), block(2), END]])
        assert one() == [1, 2]

    def test_two_crashes_reject(self, run):
        for scripts in ([CRASH], [CRASH]), ([CRASH], [KILL], [CRASH]):
            one = run(*([script] for script in scripts))
            with pytest.raises(RejectRecording, match="^decoder crashed: signal 11$"):
                one()
            assert [child.ended for child in one.children] == [1] * len(scripts)

    def test_two_deaths_from_outside_reject_nothing(self, run):
        for scripts in ([KILL], [KILL]), ([KILL], [CRASH], [block(1), KILL]):
            one = run(*([script] for script in scripts))
            with pytest.raises(ReadError, match="x.wav: decoder crashed: signal 9, twice, from outside$"):
                one()

    def test_another_decoding_the_second_time_is_no_recording(self, run):
        one = run([[block(1), block(2), CRASH]], [[block(1), block(9), END]])
        with pytest.raises(ReadError, match="x.wav: decoded differently the second time$"):
            one()
        assert one.heard == [1, 2] and one.children[1].ended == 1

    def test_an_empty_block_is_not_handed_on(self, run):
        one = run([[block(1), (b"B", bytearray()), block(2), END]])
        assert one() == [1, 2]

    def test_a_refusal_leaves_the_child_alive(self, run):
        one = run([[block(1), (b"R", b"torn")], [block(2), END]])
        with pytest.raises(RejectRecording, match="^torn$"):
            one()
        assert (one(), [child.ended for child in one.children]) == ([2], [0])

    def test_a_read_error_of_the_child_fails_the_shard_with_its_errno(self, run):
        one = run([[(b"O", json.dumps([5, "disk"]).encode())]])
        with pytest.raises(ReadError, match=r"x.wav: cannot be read \(errno 5, disk\)$"):
            one()

    def test_out_of_memory_ends_the_child_and_rejects(self, run):
        one = run([[(b"M", b"")]], [[block(2), END]])
        with pytest.raises(RejectRecording, match="^decoder outgrew its memory budget of 2.5 GB$"):
            one()
        assert (one(), [child.ended for child in one.children]) == ([2], [1, 0])

    def test_an_unknown_message_is_a_bug(self, run):
        with pytest.raises(AssertionError):
            run([[(b"X", b"")]])()

    def test_left_in_the_middle_the_child_is_ended(self, run):
        one = run([[block(1), block(2), END]])
        blocks = one.process.decode(source(one.path), os.fsencode(one.path), REQUEST, {})
        next(blocks)
        blocks.close()
        assert [child.ended for child in one.children] == [1]

    def test_a_child_that_died_between_two_recordings_is_ended_and_replaced(self, run):
        one = run([[block(1), END]], [[block(2), END]])
        one()
        one.children[0]._dead = True
        assert (one(), [child.ended for child in one.children]) == ([2], [1, 0])

    @pytest.mark.parametrize("last", [END, (b"R", b"torn"), (b"O", b'[5, "disk"]')])
    def test_however_it_ends_the_witness_reads_no_further(self, run, monkeypatch, last):
        stopped = []
        real = module.SourceHasher.close
        monkeypatch.setattr(module.SourceHasher, "close", lambda hasher: stopped.append(real(hasher)))
        with contextlib.suppress(RejectRecording, ReadError):
            run([[block(1), last]])()
        assert len(stopped) == 1

    def test_unread_bytes_go_before_a_refusal(self, run):
        one = run([[(b"R", b"torn")]])
        planned = source(one.path)
        one.path.write_bytes(b"BYTES")
        os.utime(one.path, ns=(planned.mtime_ns, planned.mtime_ns))
        with pytest.raises(ReadError, match="changed since it was scanned"):
            list(one.process.decode(planned, os.fsencode(one.path), REQUEST, {}))


def test_the_defaults_are_those_of_the_stage():
    one, two = DecoderProcess(), Decode().open()._process
    assert (one.stall_s, one.memory_gb) == (two.stall_s, two.memory_gb) == (60.0, 4.0)


class TestTooSlow:
    """A decoder may fall behind real time by `stall_s`, 10 s here, and no more."""

    def test_as_far_behind_as_allowed_is_allowed(self, run):
        one = run([[(11.0, block(1)), (0.5, block(2)), (0.5, block(3)), (1.0, block(4)), END]])
        assert one() == [1, 2, 3, 4]

    @pytest.mark.parametrize("late", [(11.00001,), (11.25,), (11.0, 1.25), (4.0, 4.0, 4.0, 2.25)])
    def test_further_behind_is_a_death(self, run, late):
        script = [(wait, block(place)) for place, wait in enumerate(late)]
        one = run([script], [script])
        with pytest.raises(RejectRecording) as refused:
            one()
        assert str(refused.value) == f"decoder too slow: {len(late)} s of audio in {sum(late):.0f} s"
        assert one.heard == list(range(len(late) - 1))

    def test_the_readers_own_time_does_not_count(self, run):
        one = run([[block(1), block(2), block(3), END]])
        heard = []
        for wave_N in one.process.decode(source(one.path), os.fsencode(one.path), REQUEST, {}):
            heard.append(len(wave_N))
            one.clock[0] += 1000
        assert len(heard) == 3 and all(heard)


def source_sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
