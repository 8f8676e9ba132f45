"""Probe many files in a few child processes: a header that crashes or hangs the decoder costs one file.

It is the first file that its child has not answered. That file is tried once more, alone, and then rejected.
"""

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

from stages.label.decoding.supervised import START_S, DecoderDied, SupervisedChild
from stages.label.scan.probing import UNREADABLE

CHUNK = 64  # files given to a child at once
HANG_S = 60.0  # M a header takes milliseconds; S3 with its retries, seconds
MEMORY_GB = 4.0  # address space; S3 with its threads takes 0.5
ANSWER, PROBE = "stages.label.scan.probing:answer", "stages.label.scan.probing:probe"


def probe_all(
    files: Iterable[tuple], workers: int, kept: list["_Worker"] | None = None
) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """(file, facts) of each file, a tuple that begins with its path, in the order of completion.

    A crash or a hang gives facts of a `reason` alone. Raises RuntimeError when a child cannot start. `kept`:
    children of the call before, and for the next one.
    """
    source, again = iter(files), deque()
    failed: set[tuple] = set()
    pool = [] if kept is None else kept
    try:
        while True:
            while (idle := [worker for worker in pool if not worker.pending]) or len(pool) < workers:
                chunk = again.popleft() if again else list(islice(source, CHUNK))
                if not chunk:
                    break
                if not idle:  # processes start as chunks need them
                    idle = [_Worker()]
                    pool += idle
                idle[0].give(chunk)
            busy = [worker for worker in pool if worker.pending]
            if not busy:
                return
            answered = wait(busy, max(0.0, min(worker.due for worker in busy) - time.monotonic()))
            for worker in busy:
                if worker not in answered and time.monotonic() < worker.due:
                    continue
                try:
                    outcome = worker.answer()
                except DecoderDied as death:
                    pool.remove(worker)
                    file, *rest = worker.pending
                    outcome = file, {"reason": worker.reason(death)}
                    if rest:
                        again.append(rest)
                    if file not in failed:
                        failed.add(file)
                        again.append([file])
                        continue
                if outcome is not None:
                    yield outcome
    finally:
        for worker in [worker for worker in pool if kept is None or worker.pending]:
            pool.remove(worker)
            worker.end()


class _Worker(SupervisedChild):
    """A child, the files that it has not answered yet, and the time of its last sign of life."""

    def __init__(self):
        super().__init__(MEMORY_GB, ANSWER, PROBE, hung="header probe hung for {:g} s")
        self.pending: deque[tuple] = deque()
        self._started, self._since, self._patience_s = False, time.monotonic(), START_S

    @property
    def due(self) -> float:
        """When it is overdue."""
        return self._since + self._patience_s

    def give(self, chunk: list[tuple]) -> None:
        self.pending.extend(chunk)
        if self._started:
            self._send()

    def answer(self) -> tuple[tuple, dict[str, Any]] | None:
        """The first pending file and its facts; None from a child that has just started."""
        kind, payload = self.receive(self._patience_s, self._since)
        if kind == b"M":
            raise DecoderDied(UNREADABLE + "out of memory")
        if kind == b"S":
            self._started, self._patience_s = True, HANG_S
            return self._send()
        self._since = time.monotonic()
        return self.pending.popleft(), json.loads(payload)

    def reason(self, death: DecoderDied) -> str:
        """End the child; why its first pending file has no facts."""
        words = self.last_words()
        self.end()
        if not self._started:
            raise RuntimeError(f"a header probe could not start ({death}): {words}")
        exited = death.code is not None and death.code >= 0
        return f"decoder crashed: exit code {death.code}" if exited else str(death)

    def _send(self) -> None:
        self._since = time.monotonic()
        with suppress(DecoderDied):  # it died while idle: reading from it raises the same
            self.send({"paths": [os.fsdecode(path) for path, *_ in self.pending]})
