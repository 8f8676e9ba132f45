"""A finished column of one shard, read back whole: every byte, place and count against its record."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shards import record as records
from stages.shards.column import WAV_HEADER_BYTES, npy_header
from stages.shards.storage import Storage
from stages.signal.rates import HOP_SAMPLES

AUDIO = ("wav", "flac")  # members whose segment also has a `json` that states which samples they are


def check(storage: Storage, column: str, shard: str) -> records.Record:
    """Read a finished shard back whole; raises ValueError naming what is damaged.

    Checks the tar's bytes and sha256 against the record; that record, index and statistics hold the same
    recordings and segments; and every member's place, header and identity against its index row."""
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
        index = pq.read_table(io.BytesIO(data["index.parquet"]))
        stats = pq.read_table(io.BytesIO(data["stats.parquet"]), columns=["key"])
        _check_counts(record, index, where)
        if not stats["key"].equals(index["key"]):
            raise ValueError(f"{where}: its statistics are of other segments than its index")
        kind = "tar"
        with storage.fetched(records.file(column, shard, kind)) as path:
            _check_tar(path, record, index.to_pylist(), where)
    except FileNotFoundError:
        raise ValueError(f"{where}.{kind} is missing") from None
    return record


def _check_counts(record: records.Record, index: pa.Table, where: str) -> None:
    """Kept and rejected are all inputs, and the index holds the kept ones and no others."""
    kept, rejects = record.kept, {reject["recording"] for reject in record.rejects}
    if kept + len(record.rejects) != record.inputs:
        raise ValueError(
            f"{where}: its record says {kept} kept + {len(record.rejects)} rejected of {record.inputs} inputs"
        )
    totals = {name: pc.sum(index[name], min_count=0).as_py() for name in ("samples", "frames")}
    for name, count in {"segments": index.num_rows, **totals}.items():
        noted = getattr(record, name)
        if count != noted:
            raise ValueError(f"{where}: its index has {count} {name}, its record says {noted}")
    recordings = set(index["recording"].to_pylist())
    rejected = sorted(recordings & rejects)
    found = f"{where}: its index holds segments of"
    if rejected:
        raise ValueError(f"{found} {len(rejected)} rejected recordings, first {rejected[0]}")
    if len(recordings) != kept:
        raise ValueError(f"{found} {len(recordings)} recordings, its record says {kept} kept")


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
    """Keys ascend; each segment of a recording starts where the one before it ends, the first at sample 0."""
    key, recording = row["key"], row["recording"]
    if not last["key"] < key or key.rpartition("-")[0] != recording:
        before = last["key"] or "nothing"
        raise ValueError(f"{where}: its index has {key} of recording {recording} after {before}")
    start = last["start"] + last["samples"] if recording == last["recording"] else 0
    if row["start"] != start:
        raise ValueError(f"{where}: {key} starts at sample {row['start']}, expected {start}")


def _check_member(head: bytes, row: dict, where: str) -> None:
    name, frames, samples, header = f"{row['key']}.{row['member']}", row["frames"], row["samples"], None
    if frames != samples // HOP_SAMPLES:
        raise ValueError(f"{where}: {row['key']} has {frames} frames for {samples} samples")
    if row["member"] == "wav":
        header = WAV_HEADER_BYTES
        if row["size"] != header + 2 * samples:
            raise ValueError(f"{where}: {name} has {row['size']} bytes for {samples} samples")
    if row["member"].endswith("npy"):
        header, shape, dtype = npy_header(head)
        if shape[0] != frames or row["size"] != header + int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"{where}: {name} has shape {shape}, expected {frames} frames")
    begin, noted = -1 if header is None else row["offset"] + header, row["data_offset"]
    if noted != begin:
        raise ValueError(f"{where}: the data of {name} begin at byte {begin}, its index says {noted}")


def _check_identity(data: bytes, row: dict, where: str) -> None:
    """The `json` member states which samples the segment is."""
    identity = json.loads(data)
    for name in ("recording", "start", "samples"):
        seen = identity.get(name)
        if seen != row[name]:
            raise ValueError(f"{where}: {row['key']}.json says {name} {seen}, its index {row[name]}")
