"""The parent's side of decoding: keeps one child, feeds it, watches it, and judges what becomes of it.

- The child rejects: `RejectRecording`, once the witness has read the whole file.
- The child cannot read the bytes: `ReadError`.
- Out of memory: `RejectRecording`, it outgrew its budget.
- Crash, hang, too slow: a fresh child tries once more, then `RejectRecording`.
- Killed from outside: a fresh child tries once more, then `ReadError`.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.source import Source, SourceHasher

START_S = 120.0  # importing from a slow network disk; a child that never says ready is no one's fault
HEADER = struct.Struct("<cI")
PIPE_BYTES = 1 << 20  # four blocks: the child decodes on while the parent works
# What a broken decoder dies of. Any other signal (SIGKILL, SIGTERM, ...) was sent by someone: the
# kernel short of memory, an operator, a scheduler. It says nothing about the recording.
CRASHES = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGSYS,
    signal.SIGTRAP,
}
ROOT = Path(__file__).resolve().parents[3]


class DecoderDied(Exception):
    """The child is gone, or had to be: `outside` tells whether somebody else ended it."""

    def __init__(self, words: str, outside: bool = False):
        super().__init__(words)
        self.outside = outside


class Child:
    """One decoder process; every method raises `Death` when it is gone."""

    def __init__(self, memory_gb: float):
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONSAFEPATH": "1",  # the user's folder may hold an av.py
            "OPENBLAS_NUM_THREADS": "1",  # else its idle threads' stacks eat the memory budget
            "OMP_NUM_THREADS": "1",
        }
        arguments = [str(int(memory_gb * 2**30)), str(os.getpid())]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the child
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stages.label.decoding.child", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0, env=env,
        )  # fmt: skip
        self._out = self.process.stdout.fileno()
        self._poll = select.poll()  # select() fails above descriptor 1024
        self._poll.register(self._out, select.POLLIN)
        with contextlib.suppress(OSError):  # over the user's limit: the usual 64 KiB are only slower
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            kind, _ = self.receive(START_S)
            assert kind == b"S", kind
        except DecoderDied as death:
            self.end()
            raise ReadError(f"the decoder process does not start ({death}): {self._last_words()}") from death

    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, request: dict) -> None:
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, patience_s: float) -> tuple[bytes, bytearray]:
        """The next message: its kind and payload. `Death` too if it is not there in `patience_s`."""
        deadline = time.monotonic() + patience_s
        kind, length = HEADER.unpack(self._exactly(HEADER.size, deadline, patience_s))
        return kind, self._exactly(length, deadline, patience_s)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _exactly(self, count: int, deadline: float, patience_s: float) -> bytearray:
        data = bytearray(count)
        view, got = memoryview(data), 0
        while got < count:
            left_s = max(0.0, deadline - time.monotonic())
            if not self._poll.poll(left_s * 1000):
                raise DecoderDied(f"decoder hung: no audio for {patience_s:g} s")
            read = os.readv(self._out, [view[got:]])
            if read == 0:
                raise self._death()
            got += read
        return data

    def _death(self) -> DecoderDied:
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:  # closed its pipe and lives on: as good as hung
            return DecoderDied("decoder crashed: closed its pipe")
        if code < 0:
            crashed = -code in CRASHES
            return DecoderDied(f"decoder crashed: signal {-code}", outside=not crashed)
        return DecoderDied(f"decoder crashed: {self._last_words() or f'exit {code}'}")

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 4096))
        lines = self._stderr.read().decode("utf-8", "backslashreplace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class DecoderProcess:
    """Decodes recordings one at a time, through a child that may die without taking anyone along.

    stall_s: longest wait for audio; also how far a decoder may fall behind real time in all.
    memory_gb: the child's address space (RLIMIT_AS)."""

    def __init__(self, stall_s: float = 60.0, memory_gb: float = 4.0):
        self.stall_s, self.memory_gb = stall_s, memory_gb
        self._child: Child | None = None
        # A child dies with the thread that started it, and the caller's may last one shard only.
        self._starter = ThreadPoolExecutor(1, "decoder-starter")

    def decode(
        self,
        source: Source,
        path: bytes,
        request: dict,
        facts: dict,
        channels: Callable[..., None] = lambda *sums: None,
    ) -> Iterator[np.ndarray]:
        """Blocks of int16 (N,) at request["rate_hz"], as the child gives them.

        request: rate_hz, resampler, max_s. facts: filled with the source's rate, channels and codec
        before the first block, and with its sha256, length and damage after the last. channels: called
        with what the child says of each stretch's channels, in time before its samples come.
        Raises `RejectRecording` with the reason of a rejection, or `ReadError`."""
        hasher = SourceHasher(source, path)
        try:
            try:
                yield from self._attempts(source, {**request, "path": os.fsdecode(path)}, facts, channels)
            except RejectRecording:
                hasher.result(self.stall_s)  # its ReadError goes first: unread bytes reject nothing
                raise
            facts["source_sha256"] = hasher.result(self.stall_s)
        finally:
            hasher.stop()

    def ready(self) -> None:
        """Start the child, unless it lives. Raises `ReadError`."""
        if self._child is None or not self._child.alive():
            self.close()
            self._child = self._starter.submit(Child, self.memory_gb).result()

    def close(self) -> None:
        """End the child. The next recording starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _attempts(
        self, source: Source, request: dict, facts: dict, channels: Callable[..., None]
    ) -> Iterator[np.ndarray]:
        passed: list[int] = []  # checksums of the blocks already handed on
        deaths: list[bool] = []
        while True:
            whole = False
            try:
                yield from self._attempt(source, request, facts, channels, passed)
                whole = True
                return
            except RejectRecording:
                whole = True  # the child answered to the end
                raise
            except DecoderDied as death:
                deaths.append(death.outside)
                if deaths.count(death.outside) < 2:
                    continue
                if death.outside:
                    raise ReadError(f"{source.shown}: {death}, twice, from outside") from death
                raise RejectRecording(str(death)) from death
            finally:
                if not whole:  # dead, or left alone in mid-recording: nothing to go on with
                    self.close()

    def _attempt(
        self, source: Source, request: dict, facts: dict, channels: Callable[..., None], passed: list[int]
    ) -> Iterator[np.ndarray]:
        self.ready()
        child, samples, waited_s, index = self._child, 0, 0.0, 0
        child.send(request)
        while True:
            since = time.monotonic()
            kind, payload = child.receive(self.stall_s)
            waited_s += time.monotonic() - since
            if kind == b"B":
                samples += len(payload) // 2
                if waited_s > self.stall_s + samples / request["rate_hz"]:
                    raise DecoderDied(
                        f"decoder too slow: {samples / request['rate_hz']:.0f} s of audio in {waited_s:.0f} s"
                    )
                yield from self._fresh(source, payload, index, passed)
                index += 1
            elif kind == b"C":
                channels(*json.loads(payload))
            elif kind in (b"H", b"E"):
                facts.update(json.loads(payload))
                if kind == b"E":
                    return
            else:
                self._refuse(source, kind, payload)

    def _fresh(
        self, source: Source, payload: bytearray, index: int, passed: list[int]
    ) -> Iterator[np.ndarray]:
        """The block, unless an earlier attempt has already handed it on: then it must be the same."""
        checksum = zlib.crc32(payload)
        if index < len(passed):
            if passed[index] != checksum:
                raise ReadError(f"{source.shown}: decoded differently the second time")
            return
        passed.append(checksum)
        if payload:
            yield np.frombuffer(payload, np.int16)

    def _refuse(self, source: Source, kind: bytes, payload: bytearray) -> None:
        if kind == b"O":
            number, words = json.loads(payload)
            raise ReadError(f"{source.shown}: cannot be read (errno {number}, {words})")
        if kind == b"M":
            self.close()
            raise RejectRecording(f"decoder outgrew its memory budget of {self.memory_gb:g} GB")
        assert kind == b"R", kind
        raise RejectRecording(payload.decode())
