"""Bytes copied from an object store to a local disk while those that have arrived are in use."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from stages.shards import scratch

CHUNK = 8 << 20  # bytes copied at once
Fetch = Callable[[str], contextlib.AbstractContextManager[str | os.PathLike]]


class Arrival:
    """One file being copied, front to back."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self._copied, self._ended, self._stopped = 0, False, False
        self._changed = threading.Condition()
        self._copying: Future | None = None

    def start(self, pool: ThreadPoolExecutor, source: Any, copy: BinaryIO) -> None:
        self._copying = pool.submit(self._copy, source, copy)

    def stop(self) -> None:
        """Copying ends with the present chunk."""
        self._stopped = True

    def wait(self, end: int) -> None:
        """Returns once `path` has its first `end` bytes. OSError: the copy's error, or it is shorter."""
        with self._changed:
            self._changed.wait_for(lambda: self._copied >= end or self._ended)
            if self._copied >= end:
                return
        try:
            self._copying.result()
        except pa.ArrowInvalid as error:  # a ValueError would reject the recording, not fail the shard
            raise OSError(f"{self.name}: {error}") from error
        raise OSError(
            f"{self.name} has {self._copied} bytes, {end} are needed: `overtone verify OUT --repair` "
            f"deletes a damaged shard, to be made again"
        )

    def _copy(self, source: Any, copy: BinaryIO) -> None:
        try:
            while not self._stopped and (data := source.read(CHUNK)):
                copy.write(data)
                copy.flush()
                with self._changed:
                    self._copied += len(data)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


@contextlib.contextmanager
def arriving(name: str, source: Any) -> Iterator[Arrival]:
    """Copy the stream `source` to a temporary file, in a thread."""
    with (
        tempfile.NamedTemporaryFile(dir=scratch.folder()) as copy,
        ThreadPoolExecutor(1, "arriving") as pool,
    ):
        arrival = Arrival(name, Path(copy.name))
        arrival.start(pool, source, copy)
        try:
            yield arrival
        finally:
            arrival.stop()


class OneAhead:
    """While one local copy is in use, the next one is fetched."""

    def __init__(self, fetch: Fetch):
        self._fetch, self._pool = fetch, None
        self._next: dict[str, str] = {}
        self._coming: dict[str, tuple[contextlib.ExitStack, Future]] = {}  # at most the present and the next

    def __reduce__(self):
        return OneAhead, (self._fetch,)

    @contextlib.contextmanager
    def expecting(self, addresses: list[str]) -> Iterator[None]:
        """Within the block, a call with one of these addresses also starts fetching the one after it."""
        try:
            with ThreadPoolExecutor(1, "fetching") as pool:
                self._pool, self._next = pool, dict(pairwise(addresses))
                yield
        finally:  # running fetches have ended; a failed one has nothing to close
            self._pool, self._next = None, {}
            for copy, _ in self._coming.values():
                copy.close()
            self._coming.clear()

    @contextlib.contextmanager
    def __call__(self, address: str) -> Iterator[str | os.PathLike]:
        if self._pool is None:
            with self._fetch(address) as path:
                yield path
            return
        self._begin(address)
        copy, coming = self._coming.pop(address)
        with copy:
            path = coming.result()
            if address in self._next:
                self._begin(self._next[address])
            yield path

    def _begin(self, address: str) -> None:
        if address not in self._coming:
            copy = contextlib.ExitStack()
            self._coming[address] = copy, self._pool.submit(lambda: copy.enter_context(self._fetch(address)))
