"""Writing and reading one column of one shard: a plain tar, its index, its statistics and sums, its record.

A member's bytes, order and header depend only on the samples: keys ascend, time and owner are
fixed. `tar` and stock `webdataset` read the file; the index gives each member's place, so that a
reader takes only the bytes it needs.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.shards import record as records
from stages.shards import sums
from stages.shards.storage import Storage, table_bytes

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("recording", pa.string()),
        ("start", pa.int64()),  # sample of the recording at 24 kHz
        ("samples", pa.int64()),
        ("frames", pa.int64()),  # floor(samples / 320), the same in every column
        ("member", pa.string()),  # extension of the member the next three speak of
        ("offset", pa.int64()),  # of the member's bytes in the tar
        ("size", pa.int64()),
        ("data_offset", pa.int64()),  # of the first sample or frame; -1 when compressed
    ]
)
WAV_HEADER_BYTES = 44
BLOCK = 512  # tar


class ColumnWriter:
    """Writes one shard of a column into `tar_path`; samples of a rejected recording are taken back."""

    def __init__(self, tar_path: Path):
        self._file = open(tar_path, "w+b")  # noqa: SIM115 - closed by `finish` or `close`
        self._rows: list[dict] = []
        self._stats: list[dict] = []
        self._sums: dict[str, np.ndarray] = {}
        self._open_sums: dict[str, np.ndarray] = {}  # of the samples since the last outcome
        self._mark = (0, 0)  # file position and rows at the end of the last kept recording
        self._last_key = ""

    def add(self, key: str, members: dict[str, bytes], row: dict[str, Any], stats: dict[str, Any],
            added: dict[str, np.ndarray] | None = None) -> None:
        """`stats`: to the segment's row. `added`: arrays (levels, values) to add to the shard's sums."""
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
        sums.add(self._open_sums, added or {})

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self._file.tell()
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % BLOCK))
        return offset

    def keep(self, note: dict[str, Any]) -> None:
        """The samples since the last outcome are a whole recording; `note` goes to each stats row."""
        for row in self._stats[self._mark[1] :]:
            for name, value in note.items():
                row.setdefault(name, value)
        self._mark = (self._file.tell(), len(self._rows))
        sums.add(self._sums, self._open_sums)
        self._open_sums = {}

    def take_back(self) -> None:
        position, count = self._mark
        self._file.seek(position)
        self._file.truncate()
        del self._rows[count:], self._stats[count:]
        self._open_sums = {}

    def finish(self) -> dict[str, Any]:
        """End the tar; returns its bytes, sha256 and totals."""
        self._file.write(b"\0" * (2 * BLOCK))
        self._file.flush()
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        size = self._file.tell()
        self._file.close()
        return {
            "bytes": size,
            "sha256": digest,
            "segments": len(self._rows),
            "samples": sum(r["samples"] for r in self._rows),
            "frames": sum(r["frames"] for r in self._rows),
        }

    def close(self) -> None:
        self._file.close()

    @property
    def index(self) -> pa.Table:
        return pa.Table.from_pylist(self._rows, schema=INDEX)

    @property
    def sums(self) -> pa.Table:
        return sums.table(self._sums)

    @property
    def stats(self) -> pa.Table:
        return pa.Table.from_pylist(self._stats) if self._stats else pa.table({"key": pa.array([], pa.string())})


def data_offset(extension: str, data: bytes) -> int | None:
    """Bytes before the first sample of a wav or the first value of an npy; None for others."""
    if extension == "wav":
        return WAV_HEADER_BYTES
    if extension.endswith("npy"):
        return npy_header(data)[0]
    return None


def npy_header(data: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Header bytes, shape and dtype of an npy file's beginning; raises ValueError when it is none."""
    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:
        raise ValueError("npy in Fortran order")
    return stream.tell(), shape, dtype


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as npy version 1.0."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


@contextmanager
def publishing(storage: Storage, column: str, shard: str) -> Iterator["Publication"]:
    """Write a shard of a column; when the block ends well and `record` was set, it becomes real.

    Order: index, statistics and sums, the tar, then the record, last. An exception leaves none of the
    names changed.
    """
    name = records.file(column, shard, "tar")
    with storage.attempt(name) as path:
        publication = Publication(ColumnWriter(path))
        try:
            yield publication
        finally:
            publication.writer.close()
        assert publication.record is not None, "a shard ended without a record"
        beside: dict[str, str] = {}
        writer = publication.writer
        for kind, table in (("index", writer.index), ("stats", writer.stats), ("sums", writer.sums)):
            if kind == "sums" and not table.num_rows:
                continue
            data = table_bytes(table)
            storage.write(records.file(column, shard, f"{kind}.parquet"), data)
            beside[f"{kind}.parquet"] = hashlib.sha256(data).hexdigest()
    record = replace(publication.record, beside_sha256=beside)
    storage.write(records.file(column, shard, "json"), record.to_bytes())


@dataclass
class Publication:
    writer: ColumnWriter
    record: records.Record | None = None


def read_index(storage: Storage, column: str, shard: str) -> pa.Table:
    return storage.read_table(records.file(column, shard, "index.parquet"))


def audit(storage: Storage, column: str, shard: str) -> records.Record:
    """Read a finished shard back whole; raises ValueError naming what is damaged.

    Checks the tar's bytes and sha256 against the record, its keys against the index, and every
    array's shape and dtype against the frames the index states.
    """
    kind = "json"
    try:
        record = records.read(storage, column, shard)
        for kind in sorted({"index.parquet", "stats.parquet", *record.beside_sha256}):  # parquet itself does not notice every flipped bit
            seen = hashlib.sha256(storage.read(records.file(column, shard, kind))).hexdigest()
            noted = record.beside_sha256.get(kind, "none")
            if seen != noted:
                raise ValueError(f"{column}/{shard}.{kind} is damaged: its sha256 is {seen[:12]}…, its record says {noted[:12]}…")
    except FileNotFoundError:
        raise ValueError(f"{column}/{shard}.{kind} is missing") from None
    index = read_index(storage, column, shard)
    try:
        with storage.fetched(records.file(column, shard, "tar")) as path:
            _check_tar(path, record, index, f"{column}/{shard}")
    except FileNotFoundError:
        raise ValueError(f"{column}/{shard}.tar is missing") from None
    return record


def _check_tar(path: Path, record: records.Record, index: pa.Table, where: str) -> None:
    size = path.stat().st_size
    if size != record.bytes:
        raise ValueError(f"{where}.tar has {size} bytes, its record says {record.bytes}")
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != record.sha256:
        raise ValueError(f"{where}.tar has sha256 {digest[:12]}…, its record says {record.sha256[:12]}…")
    if index.num_rows != record.segments or record.kept + len(record.rejects) != record.inputs:
        raise ValueError(f"{where}: index has {index.num_rows} segments, the record {record.segments}; "
                         f"{record.kept} kept + {len(record.rejects)} rejected of {record.inputs}")
    with open(path, "rb") as f, tarfile.open(fileobj=f) as tar:
        members = {m.name: m for m in tar}
        for row in index.to_pylist():
            name = f"{row['key']}.{row['member']}"
            member = members.pop(name, None)
            members.pop(f"{row['key']}.json", None)
            if member is None or member.offset_data != row["offset"] or member.size != row["size"]:
                raise ValueError(f"{where}.tar: member {name} is not where the index says")
            f.seek(row["offset"])
            _check_member(f.read(128), row, where)
    if members:
        raise ValueError(f"{where}.tar holds {sorted(members)[0]}, which the index does not name")


def _check_member(head: bytes, row: dict, where: str) -> None:
    if row["frames"] != row["samples"] // 320:
        raise ValueError(f"{where}: {row['key']} has {row['frames']} frames for {row['samples']} samples")
    if row["member"] == "wav" and row["size"] != WAV_HEADER_BYTES + 2 * row["samples"]:
        raise ValueError(f"{where}: {row['key']}.wav has {row['size']} bytes for {row['samples']} samples")
    if row["member"].endswith("npy"):
        header, shape, dtype = npy_header(head)
        if shape[0] != row["frames"] or row["size"] != header + int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"{where}: {row['key']}.{row['member']} has shape {shape}, expected {row['frames']} frames")


def identity_json(identity: dict[str, Any]) -> bytes:
    """The `json` member of a segment: identity only, so that its bytes never change."""
    return json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()
