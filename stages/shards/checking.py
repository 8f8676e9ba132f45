"""A finished column of one shard, read back: its tables, or the whole tar too."""

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

AUDIO = ("wav", "flac")  # members that a `json` goes with, which states which samples they are


def check(storage: Storage, column: str, shard: str, whole: bool = True) -> records.Record:
    """Its record; ValueError naming what is damaged.

    Checks that record, index and statistics are as they were written and hold the same recordings and
    segments, and the tar's size; `whole`: also its sha256, and every member's place, header and identity
    against its index row."""
    where, kind, data = f"{column}/{shard}", "json", {}
    try:
        record = records.read(storage, column, shard)
        # parquet itself does not notice every flipped bit
        for kind in sorted({"index.parquet", "stats.parquet", *record.beside_sha256}):
            data[kind] = storage.read(records.file(column, shard, kind))
            seen = hashlib.sha256(data[kind]).hexdigest()
            noted = record.beside_sha256.get(kind, "none")
            said = f"its sha256 is {seen[:12]}…, its record says {noted[:12]}…"
            _must(seen == noted, f"{where}.{kind} is damaged: {said}")
        index = pq.read_table(io.BytesIO(data["index.parquet"]))
        stats = pq.read_table(io.BytesIO(data["stats.parquet"]), columns=["key"])
        _check_counts(record, index, where)
        same = stats["key"].equals(index["key"])
        _must(same, f"{where}: its statistics are of other segments than its index")
        kind, rows, last = "tar", index.to_pylist(), {"key": "", "recording": None}
        for row in rows:
            _check_place(row, last, where)
            last = row
        size = storage.size(records.file(column, shard, kind))
        _must(size == record.bytes, f"{where}.tar has {size} bytes, its record says {record.bytes}")
        if whole:
            with storage.fetched(records.file(column, shard, kind)) as path:
                _check_tar(path, record, rows, where)
    except FileNotFoundError:
        raise ValueError(f"{where}.{kind} is missing") from None
    return record


def _must(be: bool, problem: str) -> None:
    if not be:
        raise ValueError(problem)


def _check_counts(record, index: pa.Table, where: str) -> None:
    """Kept and rejected are all inputs, and the index holds the kept ones and no others."""
    kept, rejects, inputs = record.kept, {reject["recording"] for reject in record.rejects}, record.inputs
    said = f"{kept} kept + {len(record.rejects)} rejected of {inputs} inputs"
    _must(kept + len(record.rejects) == inputs, f"{where}: its record says {said}")
    totals = {name: pc.sum(index[name], min_count=0).as_py() for name in ("samples", "frames")}
    for name, count in {"segments": index.num_rows, **totals}.items():
        noted = getattr(record, name)
        _must(count == noted, f"{where}: its index has {count} {name}, its record says {noted}")
    recordings = set(index["recording"].to_pylist())
    rejected = sorted(recordings & rejects)
    found = f"{where}: its index holds segments of"
    _must(not rejected, f"{found} {len(rejected)} rejected recordings, first {''.join(rejected[:1])}")
    _must(len(recordings) == kept, f"{found} {len(recordings)} recordings, its record says {kept} kept")


def _check_tar(path: Path, record, rows: list[dict], where: str) -> None:
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        said = f"{where}.tar has sha256 {digest[:12]}…, its record says {record.sha256[:12]}…"
        _must(digest == record.sha256, said)
        f.seek(0)
        with tarfile.open(fileobj=f) as tar:
            members = {m.name: m for m in tar}
        for row in rows:
            name = f"{row['key']}.{row['member']}"
            member, identity = members.pop(name, None), members.pop(f"{row['key']}.json", None)
            there = member and (member.offset_data, member.size) == (row["offset"], row["size"])
            _must(there, f"{where}.tar: member {name} is not where the index says")
            f.seek(row["offset"])
            _check_member(f.read(128), row, where)
            _must(identity or row["member"] not in AUDIO, f"{where}.tar: {row['key']}.json is missing")
            if identity:
                f.seek(identity.offset_data)
                _check_identity(f.read(identity.size), row, where)
    for name in sorted(members):
        raise ValueError(f"{where}.tar holds {name}, which the index does not name")


def _check_place(row: dict, last: dict, where: str) -> None:
    """Keys ascend; each segment of a recording starts where the one before it ends, the first at sample 0."""
    key, recording, before = row["key"], row["recording"], last["key"] or "nothing"
    ascends = last["key"] < key and key.rpartition("-")[0] == recording
    _must(ascends, f"{where}: its index has {key} of recording {recording} after {before}")
    start = last["start"] + last["samples"] if recording == last["recording"] else 0
    _must(row["start"] == start, f"{where}: {key} starts at sample {row['start']}, expected {start}")


def _check_member(head: bytes, row: dict, where: str) -> None:
    name, frames, samples, header = f"{row['key']}.{row['member']}", row["frames"], row["samples"], None
    whole = frames == samples // HOP_SAMPLES
    _must(whole, f"{where}: {row['key']} has {frames} frames for {samples} samples")
    if row["member"] == "wav":
        header, size = WAV_HEADER_BYTES, row["size"]
        _must(size == header + 2 * samples, f"{where}: {name} has {size} bytes for {samples} samples")
    if row["member"].endswith("npy"):
        header, shape, dtype = npy_header(head)
        fits = shape[0] == frames and row["size"] == header + int(np.prod(shape)) * dtype.itemsize
        _must(fits, f"{where}: {name} has shape {shape}, expected {frames} frames")
    begin, noted = -1 if header is None else row["offset"] + header, row["data_offset"]
    _must(noted == begin, f"{where}: the data of {name} begin at byte {begin}, its index says {noted}")


def _check_identity(data: bytes, row: dict, where: str) -> None:
    """The `json` member states which samples the segment is."""
    identity = json.loads(data)
    for name in ("recording", "start", "samples"):
        seen = identity.get(name)
        _must(seen == row[name], f"{where}: {row['key']}.json says {name} {seen}, its index {row[name]}")
