"""Decodes recordings in a child process and decides what its failures mean.

- The child rejects: `RejectRecording`, once the whole file could be read.
- The child cannot read the bytes: `ReadError`.
- Out of memory: `RejectRecording`, it outgrew its budget.
- Crash, hang, too slow: a new child tries once more, then `RejectRecording`.
- Killed from outside: a new child tries once more, then `ReadError`.
"""

import contextlib
import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from stages.label.base import ReadError, RejectRecording
from stages.label.decoding.source import Source, SourceHasher
from stages.label.decoding.supervised import START_S, DecoderDied, SupervisedChild

PIPE_BYTES = 1 << 20  # four blocks: the child decodes on while the parent works
ANSWER = "stages.label.decoding.recording:answer"  # tests put another function in its place
Channels = Callable[..., None]


def start_decoder(memory_gb: float) -> SupervisedChild:
    """A child that is ready. Raises `ReadError`: no recording is at fault."""
    child = SupervisedChild(memory_gb, os.environ.get("OVERTONE_TEST_DECODER", ANSWER))
    with contextlib.suppress(OSError):  # above the user's limit; the usual 64 KiB are only slower
        fcntl.fcntl(child.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        kind, _ = child.receive(START_S)
    except DecoderDied as death:
        words = child.last_words()
        child.end()
        raise ReadError(f"the decoder process does not start ({death}): {words}") from death
    assert kind == b"S", kind
    return child


class DecoderProcess:
    """Decodes recordings one at a time, in a child that it replaces when it dies.

    stall_s: longest wait for audio; also how far a decoder may fall behind real time in all.
    memory_gb: the child's address space (RLIMIT_AS)."""

    def __init__(self, stall_s: float = 60.0, memory_gb: float = 4.0):
        self.stall_s, self.memory_gb = stall_s, memory_gb
        self._child: SupervisedChild | None = None
        # A child dies with the thread that started it, and the caller's may last one shard only.
        self._starter = ThreadPoolExecutor(1, "decoder-starter")

    def decode(
        self, source: Source, path: bytes, request: dict, facts: dict, channels: Channels = lambda *sums: None
    ) -> Iterator[np.ndarray]:
        """Blocks of int16 (N,) at request["rate_hz"], as the child gives them.

        request: rate_hz, resampler, max_s. facts: gets the source's rate, channels and codec before the first
        block, and its sha256, length and damage after the last. channels: called with the sums of each
        stretch's channels before its samples. Raises `RejectRecording` with the reason, or `ReadError`."""
        attempt = partial(self._attempt, source, {**request, "path": os.fsdecode(path)}, facts, channels)
        with contextlib.closing(SourceHasher(source, path)) as hasher:
            try:
                yield from self._attempts(source, attempt)
            except RejectRecording:
                hasher.result(self.stall_s)  # may raise a ReadError: unread bytes reject nothing
                raise
            facts["source_sha256"] = hasher.result(self.stall_s)

    def ready(self) -> None:
        """Start the child, unless it is alive. Raises `ReadError`."""
        if self._child is None or not self._child.alive():
            self.close()
            self._child = self._starter.submit(start_decoder, self.memory_gb).result()

    def close(self) -> None:
        """End the child. The next recording starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _attempts(self, source: Source, attempt: Callable[[], Iterator[bytearray]]) -> Iterator[np.ndarray]:
        passed: list[int] = []  # checksums of the blocks already yielded
        deaths: list[bool] = []
        while True:
            whole = False
            try:
                for index, payload in enumerate(attempt()):
                    checksum = zlib.crc32(payload)
                    if index == len(passed):
                        passed.append(checksum)
                        if payload:
                            yield np.frombuffer(payload, np.int16)
                    elif passed[index] != checksum:
                        raise ReadError(f"{source.shown}: decoded differently the second time")
                whole = True
                return
            except RejectRecording:
                whole = True  # the child answered to the end
                raise
            except DecoderDied as death:
                deaths.append(death.outside)
                if deaths.count(death.outside) == 2:
                    if death.outside:
                        raise ReadError(f"{source.shown}: {death}, twice, from outside") from death
                    raise RejectRecording(str(death)) from death
            finally:
                if not whole:  # dead, or abandoned in the middle of a recording
                    self.close()

    def _attempt(self, source: Source, request: dict, facts: dict, channels: Channels) -> Iterator[bytearray]:
        self.ready()
        child, samples, waited_s = self._child, 0, 0.0
        child.send(request)
        while True:
            since = time.monotonic()
            kind, payload = child.receive(self.stall_s)
            waited_s += time.monotonic() - since
            if kind == b"B":
                samples += len(payload) // 2
                audio_s = samples / request["rate_hz"]
                if waited_s > self.stall_s + audio_s:
                    raise DecoderDied(f"decoder too slow: {audio_s:.0f} s of audio in {waited_s:.0f} s")
                yield payload
            elif kind == b"C":
                channels(*json.loads(payload))
            elif kind in (b"H", b"E"):
                facts.update(json.loads(payload))
                if kind == b"E":
                    return
            elif kind == b"O":
                number, words = json.loads(payload)
                raise ReadError(f"{source.shown}: cannot be read (errno {number}, {words})")
            elif kind == b"M":
                self.close()
                raise RejectRecording(f"decoder outgrew its memory budget of {self.memory_gb:g} GB")
            else:
                assert kind == b"R", kind
                raise RejectRecording(payload.decode())
