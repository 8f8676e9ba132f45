"""What a scan has read so far, in parts below OUT: a kill costs seconds of it. Only a cache: a part that is
missing, damaged or of another format means that its files are read again."""

import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.label.scan.identity import PROBED
from stages.shards.storage import Storage

FOLDER = "scanning"
PART_S = 5.0  # between parts
PART_ROWS = 65_536  # at most, in one part
AT_ONCE = 8  # parts that are read or deleted
Row = dict[str, Any]

# Facts of a header, or the `sha256` of a whole file. Ids come from names, and are made anew.
PART = pa.schema(
    [field for field in PROBED if field.name not in ("base", "known_sha")]
    + [pa.field("sha256", pa.string())],
    metadata={"overtone.scanning": "1"},
)


class Parts:
    """Those of one OUT; None: nothing is kept. `writes`: OUT may be written to."""

    def __init__(self, out: Storage | None, writes: bool = True):
        self._out, self._writes = out, writes and out is not None
        self._rows: list[Row] = []
        self._due = 0.0

    def joined(self, place: Path) -> Path:
        """All rows of earlier scans that did not end, in one local file."""
        names = self._names()
        with pq.ParquetWriter(place, PART) as writer, ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(names), AT_ONCE):  # so many in memory
                for table in pool.map(self._read, names[start : start + AT_ONCE]):
                    writer.write_table(table)
        return place

    def keeping(self, outcomes: Iterable[tuple[tuple, Row]]) -> Iterator[tuple[tuple, Row]]:
        """The outcomes of `probe_all`, each kept before it is passed on."""
        for (path, name, size, mtime_ns), facts in outcomes:
            self.add({"size": size, "mtime_ns": mtime_ns} | facts | {"path_bytes": path})
            yield (path, name, size, mtime_ns), facts

    def add(self, row: Row) -> None:
        if not self._writes:
            return
        if not self._rows:
            self._due = time.monotonic() + PART_S
        self._rows.append(row)
        if time.monotonic() < self._due and len(self._rows) < PART_ROWS:
            return
        self._out.write_table(f"{FOLDER}/{time.time_ns()}.parquet", pa.Table.from_pylist(self._rows, PART))
        self._rows = []

    def clear(self) -> None:
        """The catalog is written: nobody needs them any more."""
        if self._out.is_local:
            shutil.rmtree(self._out.path(FOLDER), ignore_errors=True)
            return
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._out.delete, self._names()))

    def _names(self) -> list[str]:
        names = self._out.names(FOLDER) if self._out else ()
        return [f"{FOLDER}/{name}" for name in sorted(names)]

    def _read(self, name: str) -> pa.Table:
        try:
            table = self._out.read_table(name)
        except (OSError, pa.ArrowInvalid):
            return PART.empty_table()
        return table if table.schema.equals(PART, check_metadata=True) else PART.empty_table()


NONE = Parts(None)
