"""Writing one column of one shard: a plain tar, its index, its statistics and histograms, its record.

A member's bytes, order and header depend only on the samples: keys ascend, time and owner are fixed. `tar`
and stock `webdataset` read the file; the index gives each member's place."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.shards import histograms
from stages.shards import record as records
from stages.shards.storage import Storage, fields, table_bytes

INDEX = pa.schema(
    fields(pa.string(), "key recording")
    # start: sample of the recording; frames: floor(samples / 320), the same in every column
    + fields(pa.int64(), "start samples frames")
    + fields(pa.string(), "member")  # extension of the member that the next three describe
    # in the tar: the member's bytes, and its first sample or frame (-1 when compressed)
    + fields(pa.int64(), "offset size data_offset")
)
WAV_HEADER_BYTES = 44
BLOCK = 512  # tar


class ColumnWriter:
    def __init__(self, tar_path: Path):
        self._file = open(tar_path, "w+b")  # noqa: SIM115 - closed by `finish` or `close`
        self._rows: list[dict] = []
        self._stats: list[dict] = []
        self._histograms, self._open = {}, {}  # of kept recordings; of the samples since the last outcome
        self._mark = (0, 0)  # file position and rows at the end of the last kept recording
        self._last_key = ""

    def add(
        self,
        key: str,
        members: dict[str, bytes],
        row: dict,
        stats: dict,
        added: dict[str, np.ndarray] | None = None,
    ) -> None:
        """`added`: (levels, values) for the shard's histograms."""
        assert key > self._last_key, f"keys must ascend: {key} after {self._last_key}"
        self._last_key = key
        for extension in sorted(members):
            offset = self._member(f"{key}.{extension}", members[extension])
            if extension != "json":
                data = data_offset(extension, members[extension])
                place = {"member": extension, "offset": offset, "size": len(members[extension])}
                place["data_offset"] = -1 if data is None else offset + data
        self._rows.append({"key": key, **row, **place})
        self._stats.append({"key": key, **row, **stats})
        histograms.add(self._open, added or {})

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._file.write(data + b"\0" * (-len(data) % BLOCK))
        return offset

    def keep(self, note: dict) -> None:
        """The samples since the last outcome are a whole recording; `note` goes to each stats row."""
        for row in self._stats[self._mark[1] :]:
            row |= {name: value for name, value in note.items() if name not in row}
        self._mark = (self._file.tell(), len(self._rows))
        histograms.add(self._histograms, self._open)
        self._open = {}

    def take_back(self) -> None:
        position, count = self._mark
        self._file.seek(position)
        self._file.truncate()
        del self._rows[count:], self._stats[count:]
        self._open = {}

    def finish(self) -> dict:
        """End the tar; its size, sha256 and totals."""
        self._file.write(b"\0" * (2 * BLOCK))
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        size = self._file.tell()
        self._file.close()
        totals = {name: sum(row[name] for row in self._rows) for name in ("samples", "frames")}
        return {"bytes": size, "sha256": digest, "segments": len(self._rows), **totals}

    def close(self) -> None:
        self._file.close()

    @property
    def index(self) -> pa.Table:
        return pa.Table.from_pylist(self._rows, schema=INDEX)

    @property
    def histograms(self) -> pa.Table:
        return histograms.table(self._histograms)

    @property
    def stats(self) -> pa.Table:
        return pa.Table.from_pylist(self._stats, None if self._stats else pa.schema({"key": pa.string()}))


def data_offset(extension: str, data: bytes) -> int | None:
    """Bytes before a wav's first sample or an npy's first value; None for others."""
    if extension == "wav":
        return WAV_HEADER_BYTES
    return npy_header(data)[0] if extension.endswith("npy") else None


def npy_header(data: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Header bytes, shape and dtype from the beginning of an npy file; ValueError when it is none."""
    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:
        raise ValueError("npy in Fortran order")
    return stream.tell(), shape, dtype


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


@contextmanager
def publishing(storage: Storage, column: str, shard: str) -> Iterator["Publication"]:
    """Write a shard of a column; when the block ends well and `record` was set, its files get their names.

    Order: index, statistics and histograms, the tar, the record. An exception changes no file."""
    with storage.attempt(records.file(column, shard, "tar")) as path:
        publication = Publication(writer := ColumnWriter(path), path)
        try:
            yield publication
        finally:
            writer.close()
        assert publication.record is not None, "a shard ended without a record"
        tables, digests = {"index": writer.index, "stats": writer.stats, "sums": writer.histograms}, {}
        for kind, table in tables.items():
            if kind != "sums" or table.num_rows:
                data = table_bytes(table)
                storage.write(records.file(column, shard, f"{kind}.parquet"), data)
                digests[f"{kind}.parquet"] = hashlib.sha256(data).hexdigest()
    record = replace(publication.record, beside_sha256=digests)
    storage.write(records.file(column, shard, "json"), record.to_bytes())


@dataclass
class Publication:
    writer: ColumnWriter
    path: Path  # of the tar on this machine, within the block
    record: records.Record | None = None


def read_index(storage: Storage, column: str, shard: str) -> pa.Table:
    return storage.read_table(records.file(column, shard, "index.parquet"))
