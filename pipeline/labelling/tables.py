"""The tables of an OUT while a run goes on: what its audit finished is added in parts."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from stages.label import gathering
from stages.label.rows import Rows
from stages.shards.storage import Storage

FLUSH_S = 600.0  # between parts, where shards take long


class Tables:
    """`add` a shard's row of the chain; a part is written, in a thread, for every `gathering.PART` of them,
    and for the rest at the end of the `with` block, whatever ends it."""

    def __init__(self, out: Storage, live: pa.Array, attempts: dict[tuple[str, str], int]):
        self._out, self._live, self._attempts = out, live, attempts
        self._held: dict[str, Rows] = {}
        self._since = time.monotonic()
        self._pool, self._writing = ThreadPoolExecutor(1, "tables"), Future()
        self._writing.set_result(None)

    def __enter__(self) -> "Tables":
        return self

    def add(self, row: dict) -> None:
        """OSError of the part before, if it could not be written."""
        if made := row.pop("made", None):
            self._held[row["shard"]] = made
        if len(self._held) >= gathering.PART or time.monotonic() - self._since > FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        self._since = time.monotonic()
        self._writing.result()
        if self._held:
            held, self._held = self._held, {}
            self._writing = self._pool.submit(gathering.add, self._out, held, self._live, self._attempts)

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
            self._writing.result()
        finally:
            self._pool.shutdown()
