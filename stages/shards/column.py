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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shards import histograms
from stages.shards import record as records
from stages.shards.storage import Storage, table_bytes
from stages.signal.rates import HOP_SAMPLES

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
AUDIO = ("wav", "flac")  # members beside which a `json` says of which samples they are
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

    def add(
        self,
        key: str,
        members: dict[str, bytes],
        row: dict[str, Any],
        stats: dict[str, Any],
        added: dict[str, np.ndarray] | None = None,
    ) -> None:
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
        histograms.add(self._open_sums, added or {})

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
        histograms.add(self._sums, self._open_sums)
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
        return histograms.table(self._sums)

    @property
    def stats(self) -> pa.Table:
        return (
            pa.Table.from_pylist(self._stats) if self._stats else pa.table({"key": pa.array([], pa.string())})
        )


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

    Checks the tar's bytes and sha256 against the record; that record, index and statistics tell of the
    same recordings and segments; and every member's place, header and identity against its index row.
    """
    where, kind, data = f"{column}/{shard}", "json", {}
    try:
        record = records.read(storage, column, shard)
        # parquet itself does not notice every flipped bit
        for kind in sorted({"index.parquet", "stats.parquet", *record.beside_sha256}):
            data[kind] = storage.read(records.file(column, shard, kind))
            seen = hashlib.sha256(data[kind]).hexdigest()
            noted = record.beside_sha256.get(kind, "none")
            if seen != noted:
                raise ValueError(
                    f"{where}.{kind} is damaged: its sha256 is {seen[:12]}…, its record says {noted[:12]}…"
                )
    except FileNotFoundError:
        raise ValueError(f"{where}.{kind} is missing") from None
    index, stats = (
        pq.read_table(io.BytesIO(data["index.parquet"])),
        pq.read_table(io.BytesIO(data["stats.parquet"]), columns=["key"]),
    )
    _check_counts(record, index, where)
    if not stats["key"].equals(index["key"]):
        raise ValueError(f"{where}: its statistics are of other segments than its index")
    try:
        with storage.fetched(records.file(column, shard, "tar")) as path:
            _check_tar(path, record, index.to_pylist(), where)
    except FileNotFoundError:
        raise ValueError(f"{where}.tar is missing") from None
    return record


def _check_counts(record: records.Record, index: pa.Table, where: str) -> None:
    """Kept and rejected are all inputs, and the index holds the kept ones and no others."""
    if record.kept + len(record.rejects) != record.inputs:
        raise ValueError(
            f"{where}: its record says {record.kept} kept + {len(record.rejects)} rejected of "
            f"{record.inputs} inputs"
        )
    counts = {
        "segments": index.num_rows,
        "samples": pc.sum(index["samples"], min_count=0).as_py(),
        "frames": pc.sum(index["frames"], min_count=0).as_py(),
    }
    for name, count in counts.items():
        if count != getattr(record, name):
            raise ValueError(
                f"{where}: its index has {count} {name}, its record says {getattr(record, name)}"
            )
    recordings = set(index["recording"].to_pylist())
    rejected = sorted(recordings.intersection(reject["recording"] for reject in record.rejects))
    if rejected:
        raise ValueError(
            f"{where}: its index holds segments of {len(rejected)} rejected recordings, first {rejected[0]}"
        )
    if len(recordings) != record.kept:
        raise ValueError(
            f"{where}: its index holds segments of {len(recordings)} recordings, its record says "
            f"{record.kept} kept"
        )


def _check_tar(path: Path, record: records.Record, rows: list[dict], where: str) -> None:
    size = path.stat().st_size
    if size != record.bytes:
        raise ValueError(f"{where}.tar has {size} bytes, its record says {record.bytes}")
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != record.sha256:
        raise ValueError(f"{where}.tar has sha256 {digest[:12]}…, its record says {record.sha256[:12]}…")
    last = {"key": "", "recording": None}
    with open(path, "rb") as f, tarfile.open(fileobj=f) as tar:
        members = {m.name: m for m in tar}
        for row in rows:
            _check_place(row, last, where)
            last = row
            name = f"{row['key']}.{row['member']}"
            member, identity = members.pop(name, None), members.pop(f"{row['key']}.json", None)
            if member is None or member.offset_data != row["offset"] or member.size != row["size"]:
                raise ValueError(f"{where}.tar: member {name} is not where the index says")
            f.seek(row["offset"])
            _check_member(f.read(128), row, where)
            if identity is not None:
                f.seek(identity.offset_data)
                _check_identity(f.read(identity.size), row, where)
            elif row["member"] in AUDIO:
                raise ValueError(f"{where}.tar: {row['key']}.json is missing")
    if members:
        raise ValueError(f"{where}.tar holds {sorted(members)[0]}, which the index does not name")


def _check_place(row: dict, last: dict, where: str) -> None:
    """Segments come by key; a recording's lie one behind the other and begin at its first sample."""
    if not last["key"] < row["key"] or row["key"].rpartition("-")[0] != row["recording"]:
        raise ValueError(
            f"{where}: its index has {row['key']} of recording {row['recording']} after "
            f"{last['key'] or 'nothing'}"
        )
    start = last["start"] + last["samples"] if row["recording"] == last["recording"] else 0
    if row["start"] != start:
        raise ValueError(f"{where}: {row['key']} starts at sample {row['start']}, expected {start}")


def _check_member(head: bytes, row: dict, where: str) -> None:
    name, header = f"{row['key']}.{row['member']}", None
    if row["frames"] != row["samples"] // HOP_SAMPLES:
        raise ValueError(f"{where}: {row['key']} has {row['frames']} frames for {row['samples']} samples")
    if row["member"] == "wav":
        header = WAV_HEADER_BYTES
        if row["size"] != header + 2 * row["samples"]:
            raise ValueError(f"{where}: {name} has {row['size']} bytes for {row['samples']} samples")
    if row["member"].endswith("npy"):
        header, shape, dtype = npy_header(head)
        if shape[0] != row["frames"] or row["size"] != header + int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"{where}: {name} has shape {shape}, expected {row['frames']} frames")
    data_offset = -1 if header is None else row["offset"] + header
    if row["data_offset"] != data_offset:
        raise ValueError(
            f"{where}: the data of {name} begin at byte {data_offset}, its index says {row['data_offset']}"
        )


def _check_identity(data: bytes, row: dict, where: str) -> None:
    """The `json` member says of which samples the segment is."""
    said = json.loads(data)
    for name in ("recording", "start", "samples"):
        if said.get(name) != row[name]:
            raise ValueError(
                f"{where}: {row['key']}.json says {name} {said.get(name)}, its index {row[name]}"
            )
