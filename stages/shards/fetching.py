"""Bytes of an object store on their way to a local disk, while what has come already is worked on."""

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

CHUNK = 8 << 20  # bytes copied at once
Fetch = Callable[[str], contextlib.AbstractContextManager[str | os.PathLike]]


class Arrival:
    """One file being copied, front to back: `wait(end)` returns once its first `end` bytes lie at `path`."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        self._there, self._over, self._left = 0, False, False
        self._moved = threading.Condition()
        self._copying: Future | None = None

    def start(self, pool: ThreadPoolExecutor, source: Any, copy: BinaryIO) -> None:
        self._copying = pool.submit(self._copy, source, copy)

    def leave(self) -> None:
        """Nobody waits any more: copying ends with the chunk under way."""
        self._left = True

    def wait(self, end: int) -> None:
        """Raises OSError when they do not come: what went wrong with the copy, or that the file is
        shorter."""
        with self._moved:
            self._moved.wait_for(lambda: self._there >= end or self._over)
            if self._there >= end:
                return
        try:
            self._copying.result()
        except pa.ArrowInvalid as error:  # a ValueError would reject the recording, not fail the shard
            raise OSError(f"{self.name}: {error}") from error
        raise OSError(
            f"{self.name} has {self._there} bytes, {end} are needed: `overtone verify OUT --repair` "
            f"sends a damaged shard back"
        )

    def _copy(self, source: Any, copy: BinaryIO) -> None:
        try:
            while not self._left and (data := source.read(CHUNK)):
                copy.write(data)
                copy.flush()
                with self._moved:
                    self._there += len(data)
                    self._moved.notify_all()
        finally:
            with self._moved:
                self._over = True
                self._moved.notify_all()


@contextlib.contextmanager
def arriving(name: str, source: Any) -> Iterator[Arrival]:
    """Copy the stream `source` to a temporary file, in a thread; the copy is gone when the block ends."""
    with tempfile.NamedTemporaryFile(prefix="overtone-") as copy, ThreadPoolExecutor(1, "arriving") as pool:
        arrival = Arrival(name, Path(copy.name))
        arrival.start(pool, source, copy)
        try:
            yield arrival
        finally:
            arrival.leave()


class OneAhead:
    """`fetch`, one address ahead: while one local copy is worked on, the next one's bytes are on their
    way."""

    def __init__(self, fetch: Fetch):
        self._fetch = fetch
        self._next: dict[str, str] = {}
        # at most one, and the one being asked for
        self._coming: dict[str, tuple[contextlib.ExitStack, Future]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __reduce__(self):
        return OneAhead, (self._fetch,)

    @contextlib.contextmanager
    def expecting(self, addresses: list[str]) -> Iterator[None]:
        """Within the block, a call with one of these addresses has the one after it fetched meanwhile."""
        try:
            with ThreadPoolExecutor(1, "fetching") as pool:
                self._pool, self._next = pool, dict(pairwise(addresses))
                yield
        finally:  # what was under way has ended; where it failed there is nothing to close
            self._pool, self._next = None, {}
            for copy, _ in self._coming.values():
                copy.close()
            self._coming.clear()

    @contextlib.contextmanager
    def __call__(self, address: str) -> Iterator[str | os.PathLike]:
        """The address's local copy; raises what `fetch` raises."""
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
