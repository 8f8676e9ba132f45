"""Probe many files in a few processes of their own, so that a bad header costs one file.

Workers are plain subprocesses, not a fork (threads of the parent) and not `spawn` (which imports
the parent's main module, torch and all). They answer file by file, so whoever crashes or hangs is
known; that file is tried once more, alone, and then rejected.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from stages.label.scan.probing import UNREADABLE

CHUNK = 64  # files given to a worker at once
HANG_S = 60.0  # M a header takes milliseconds; S3 with its retries, seconds
START_S = 120.0
PROBE = "stages.label.scan.probing:probe"


def probe_all(
    paths: Iterable[bytes], workers: int, target: str = PROBE, hang_s: float = HANG_S
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(path, facts) of each path, in the order of completion; processes start as chunks need them.

    `target` names a function `module:function` of one path, called in the worker. A crash or a hang
    gives facts of a `reason` alone. Raises RuntimeError when a worker cannot even start.
    """
    source, again = iter(paths), deque()
    struck: set[bytes] = set()
    pool: list[_Worker] = []
    try:
        while True:
            _hand_out(pool, source, again, workers, target)
            if not any(w.pending for w in pool):
                return
            for worker in _ready(pool, hang_s):
                fault = worker.fault(hang_s)
                if fault is None:
                    yield from worker.take()
                    continue
                pool.remove(worker)
                path, *rest = worker.pending
                if rest:
                    again.append(rest)
                if path in struck:
                    yield path, {"reason": fault}
                else:
                    struck.add(path)
                    again.append([path])
    finally:
        for worker in pool:
            worker.stop()


def _hand_out(
    pool: list["_Worker"], source: Iterator[bytes], again: deque, workers: int, target: str
) -> None:
    """Give every idle worker a chunk; start another worker only for a chunk that nobody is free for."""
    while True:
        idle = [w for w in pool if not w.pending]
        if not idle and len(pool) == workers:
            return
        chunk = again.popleft() if again else list(islice(source, CHUNK))
        if not chunk:
            return
        if not idle:
            idle = [_Worker(target)]
            pool += idle
        idle[0].give(chunk)


def _ready(pool: list["_Worker"], hang_s: float) -> list["_Worker"]:
    """Workers that answered, died, or are overdue."""
    busy = [w for w in pool if w.pending]
    nearest = min(w.overdue_at(hang_s) for w in busy) - time.monotonic()
    answered = wait([w.pipe for w in busy], timeout=max(0.0, nearest))
    now = time.monotonic()
    return [w for w in busy if w.pipe in answered or w.overdue_at(hang_s) <= now]


class _Worker:
    def __init__(self, target: str):
        self.pipe, theirs = Pipe()
        code = f"from stages.label.scan.probe_pool import serve; serve({theirs.fileno()}, {target!r})"
        here = str(Path(__file__).resolve().parents[3])
        places = os.pathsep.join([here, *(p for p in sys.path if p)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": places},
        )
        theirs.close()
        self.pending: deque[bytes] = deque()
        self.started = False
        self.since = time.monotonic()

    def give(self, chunk: list[bytes]) -> None:
        self.pending.extend(chunk)
        if self.started:
            self.since = time.monotonic()
        with suppress(OSError):  # it died while idle: reading from it says so
            self.pipe.send(chunk)

    def overdue_at(self, hang_s: float) -> float:
        return self.since + (hang_s if self.started else START_S)

    def fault(self, hang_s: float) -> str | None:
        """None when an answer waits; else why there will be none. The process is gone then."""
        try:
            if self.pipe.poll():
                self.answer = self.pipe.recv()
                return None
            fault = f"header probe hung for {hang_s:.0f} s"
        except (EOFError, OSError):
            code = self.process.wait()
            fault = f"decoder crashed: signal {-code}" if code < 0 else f"decoder crashed: exit code {code}"
        self.stop()
        if not self.started:
            raise RuntimeError(f"a header probe could not start ({fault}); see the lines above")
        return fault

    def take(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        self.since = time.monotonic()
        if not self.started:  # the first answer says that it is up
            self.started = True
        else:
            yield self.pending.popleft(), self.answer

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def serve(handle: int, target: str) -> None:
    """A worker's life: answer chunk after chunk until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe = Connection(handle)
    module, _, function = target.partition(":")
    probe = getattr(importlib.import_module(module), function)
    try:
        pipe.send(None)
        while True:
            for path in pipe.recv():
                pipe.send(_outcome(probe, path))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _outcome(probe: Any, path: bytes) -> dict[str, Any]:
    """The one place where whatever a decoder raises becomes an outcome."""
    try:
        return probe(path)
    except MemoryError:
        return {"reason": UNREADABLE + "out of memory"}
    except Exception as error:
        return {"reason": f"decoder failed: {type(error).__name__}: {error}"}
