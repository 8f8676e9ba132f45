"""The audit: finished shards read back, and their indexes and statistics gathered into one parquet each.

`OUT/index.parquet` has one row per segment and column, `OUT/segments.parquet` one per segment,
`OUT/shards.parquet` one per shard and column, `OUT/sums.parquet` a few per column. Only shards not yet
gathered are read.
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shards import column, histograms
from stages.shards import record as records
from stages.shards.storage import Storage
from stages.signal.rates import RATE_HZ

SHARDS = pa.schema(
    [
        ("shard", pa.string()),
        ("column", pa.string()),
        ("inputs", pa.int64()),
        ("kept", pa.int64()),
        ("rejected", pa.int64()),
        ("segments", pa.int64()),
        ("samples", pa.int64()),
        ("frames", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("device", pa.string()),
        ("host", pa.string()),
        ("started", pa.float64()),
        ("wall_s", pa.float64()),
        ("busy_s", pa.float64()),
        ("facts", pa.string()),
        ("hours", pa.float64()),
        ("times_real_time", pa.float64()),  # audio seconds a second of wall_s
        # in the run that made it, 1 unless a worker died; null when another run gathered it
        ("attempts", pa.int64()),
        ("rejects", pa.string()),  # JSON: reason → how many
        # Of audio: the recordings that took longest for their length; null in records of older versions.
        (
            "slowest",
            pa.list_(
                pa.struct(
                    [("recording", pa.string()), ("seconds", pa.float64()), ("times_real_time", pa.float64())]
                )
            ),
        ),
    ]
)
REJECTED = pa.schema(
    [
        ("stage", pa.string()),
        ("shard", pa.string()),
        ("recording", pa.string()),
        ("path", pa.string()),
        ("reason", pa.string()),
    ]
)
INDEX_ROWS = pa.schema([("shard", pa.string()), ("column", pa.string()), *column.INDEX])
# And each stage's statistics. `columns`: those the row was made of; one recipe's rows, while another is not
# finished.
SEGMENTS = pa.schema(
    [
        ("columns", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("recording", pa.string()),
        ("samples", pa.int64()),
    ]
)
CPU_S = 0.0005  # a second of audio costs about
TABLES = ("index", "segments", "shards")
ROW_GROUP = 65_536  # rows gathered before they are written: row groups worth reading, not one per shard
SPAN = ["key", "recording", "start", "samples", "frames"]  # of an index row: the same in every column


@dataclass(frozen=True)
class AuditWorker:
    """Reads one shard back in every column; the last stage of the chain."""

    out: str
    columns: tuple[str, ...]  # audio first

    def __call__(self, shard: str) -> dict[str, Any]:
        started = time.time()
        row: dict[str, Any] = {
            "shard": shard,
            "column": "audit",
            "stage": "audit",
            "error": None,
            "status": "finished",
        }
        try:
            damage = damaged(Storage(self.out), shard, self.columns)
        except OSError as error:
            damage = {"": f"cannot be read back: {error}"}
        if damage:
            row |= {"status": "failed", "error": "; ".join(damage.values())}
        return row | {"started": started, "wall_s": time.time() - started, "host": platform.node()}


def damaged(storage: Storage, shard: str, columns: Iterable[str]) -> dict[str, str]:
    """Damaged columns of a shard and what is wrong with each; empty when all is well.

    Besides each column's own bytes: every key has the same samples and frames in all columns, but for
    recordings that the labels reject, and labels were made from the audio that is there. Raises OSError when
    bytes could not be read, which is no damage.
    """
    found: dict[str, str] = {}
    audio_sha256, audio = None, {}
    for name in columns:
        try:
            record = column.audit(storage, name, shard)
            index = column.read_index(storage, name, shard)
        except ValueError as error:
            found[name] = str(error)
            continue
        segments = {row["key"]: row for row in index.select(SPAN).to_pylist()}
        if audio_sha256 is None and record.source_sha256 is None:
            audio_sha256, audio = record.sha256, segments
            continue
        refused = {r["recording"] for r in record.rejects}
        expected = {key: row for key, row in audio.items() if row["recording"] not in refused}
        if audio_sha256 and record.source_sha256 != audio_sha256:
            found[name] = f"{name}/{shard} was made from another audio tar than the one that is there"
        elif audio_sha256 and segments != expected:
            odd = sorted(k for k in expected.keys() | segments.keys() if expected.get(k) != segments.get(k))
            found[name] = f"{name}/{shard}: {len(odd)} segments differ from the audio column, first {odd[0]}"
    return found


def gathered(storage: Storage, columns: Iterable[str]) -> set[str]:
    """Shards already in OUT/shards.parquet with every one of these columns."""
    if not storage.exists("shards.parquet"):
        return set()
    table = storage.read_table("shards.parquet", ["shard", "column"])
    sets = [set(table.filter(pc.equal(table["column"], c)).column("shard").to_pylist()) for c in columns]
    return set.intersection(*sets) if sets else set()


def gather(
    storage: Storage,
    columns: tuple[str, ...],
    shards: list[str],
    live: pa.Array,
    attempts: dict[tuple[str, str], int] | None = None,
) -> None:
    """Add these shards to the three tables and the sums, replacing the rows they had.

    Segments of recordings that are not `live` (tombstoned since) leave index and segments.
    `attempts`: of (column, shard), as this run counted them.
    """
    replaced = pa.array(shards, pa.string())
    with ThreadPoolExecutor(8) as pool:
        for name in TABLES:
            shard_rows = partial(_shard_rows, attempts=attempts or {})
            make = {"index": _index_rows, "segments": _segment_rows, "shards": shard_rows}[name]
            new = pool.map(lambda s, make=make: make(storage, columns, s), shards)
            _rewrite(storage, f"{name}.parquet", replaced, columns if name != "segments" else None, new, live)
    histograms.gather(storage, columns, shards)


def _rewrite(
    storage: Storage,
    name: str,
    replaced: pa.Array,
    columns: tuple[str, ...] | None,
    new: Iterator[pa.Table],
    live: pa.Array,
) -> None:
    """Copy the old table without the replaced shards (of these columns), then the new rows; in bounded
    memory."""
    writer, schema = None, None
    with storage.attempt(name) as path:
        for table in _old_and_new(storage, name, replaced, columns, new):
            if "recording" in table.column_names:
                table = table.filter(pc.is_in(table["recording"], live))
            if (
                schema is None
                or (merged := pa.unify_schemas([schema, table.schema], promote_options="permissive"))
                != schema
            ):
                if writer is not None:  # a later recipe brought new statistics: start again, widened
                    writer.close()
                    held = pq.read_table(path)
                    schema = merged
                    writer = pq.ParquetWriter(path, schema, compression="zstd")
                    writer.write_table(_fit(held, schema))
                else:
                    schema = table.schema
                    writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_table(_fit(table, schema))
        if writer is None:
            empty = {"index": INDEX_ROWS, "segments": SEGMENTS, "shards": SHARDS}[name.split(".")[0]]
            pq.write_table(empty.empty_table(), path)
        else:
            writer.close()


def _old_and_new(storage, name, replaced, columns, new) -> Iterator[pa.Table]:
    if storage.exists(name):
        with storage.open(name) as source:
            for batch in pq.ParquetFile(source).iter_batches(131_072):
                table = pa.Table.from_batches([batch])
                gone = pc.is_in(table["shard"], replaced)
                if columns is not None and table.num_rows:
                    gone = pc.and_(gone, pc.is_in(table["column"], pa.array(columns)))
                kept = table.filter(pc.invert(gone))
                if kept.num_rows:
                    yield kept
    held, rows = [], 0
    for table in new:
        if table.num_rows:
            held.append(table)
            rows += table.num_rows
        if rows > ROW_GROUP:
            yield pa.concat_tables(held, promote_options="permissive")
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held, promote_options="permissive")


def segments(storage: Storage, columns: tuple[str, ...], names: list[str]) -> pa.Table:
    """These fields of the segments of these columns, from OUT/segments.parquet."""
    table = storage.read_table("segments.parquet", [*names, "columns"])
    return table.filter(pc.equal(table["columns"], " ".join(columns))).select(names)


def ungathered(
    storage: Storage, columns: tuple[str, ...], plan: pa.Table, refused: pa.Array
) -> tuple[set[str], bool]:
    """(shards with a live recording that segments.parquet lacks, whether it holds one no longer live).

    `plan`: its live rows; `refused`: recordings a stage rejected, which have no segments.
    """
    if not storage.exists("segments.parquet"):
        return set(), False
    there = pc.unique(segments(storage, columns, ["recording"])["recording"])
    expected = pc.or_(pc.is_in(plan["recording"], there), pc.is_in(plan["recording"], refused))
    missing = plan.filter(pc.invert(expected))
    stale = pc.any(pc.invert(pc.is_in(there, plan["recording"].combine_chunks()))).as_py()
    return set(missing["shard"].to_pylist()), bool(stale)


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [f for f in schema if f.name not in table.column_names]
    for f in missing:
        table = table.append_column(f, pa.nulls(table.num_rows, f.type))
    return table.select(schema.names).cast(schema)


def _index_rows(storage: Storage, columns: tuple[str, ...], shard: str) -> pa.Table:
    parts = []
    for name in columns:
        table = column.read_index(storage, name, shard)
        table = table.add_column(0, "column", pa.array([name] * table.num_rows, pa.string()))
        parts.append(table.add_column(0, "shard", pa.array([shard] * table.num_rows, pa.string())))
    return pa.concat_tables(parts)


def _segment_rows(storage: Storage, columns: tuple[str, ...], shard: str) -> pa.Table:
    first, *others = columns
    merged = storage.read_table(records.file(first, shard, "stats.parquet"))
    for name in others:
        table = storage.read_table(records.file(name, shard, "stats.parquet"))
        # null rows where a column lacks the segment
        beside = table.take(pc.index_in(merged["key"], table["key"]))
        for own in table.column_names:
            if own not in merged.column_names:
                merged = merged.append_column(own, beside[own])
    merged = merged.add_column(0, "shard", pa.array([shard] * merged.num_rows, pa.string()))
    return merged.add_column(0, "columns", pa.array([" ".join(columns)] * merged.num_rows, pa.string()))


def _shard_rows(
    storage: Storage, columns: tuple[str, ...], shard: str, attempts: dict[tuple[str, str], int]
) -> pa.Table:
    rows = []
    for name in columns:
        r = records.read(storage, name, shard)
        wall_s, reasons = r.run.get("wall_s"), Counter(reject["reason"] for reject in r.rejects)
        rows.append(
            {
                "shard": shard,
                "column": name,
                "inputs": r.inputs,
                "kept": r.kept,
                "rejected": len(r.rejects),
                "segments": r.segments,
                "samples": r.samples,
                "frames": r.frames,
                "bytes": r.bytes,
                "sha256": r.sha256,
                "device": r.device,
                "host": r.run.get("host"),
                "started": r.run.get("started"),
                "wall_s": wall_s,
                "busy_s": r.run.get("busy_s"),
                "facts": json.dumps(r.facts),
                "hours": r.samples / RATE_HZ / 3600,
                "times_real_time": r.samples / RATE_HZ / wall_s if wall_s else None,
                "attempts": attempts.get((name, shard)),
                "rejects": json.dumps(reasons),
                "slowest": r.run.get("slowest"),
            }
        )
    return pa.Table.from_pylist(rows, schema=SHARDS)


def rejected_rows(
    storage: Storage, columns: Iterable[str], done: set[str], wanted: Callable[[str, str], bool]
) -> pa.Table:
    """Rejections of finished shards whose records say any, as rows of OUT/rejected.parquet."""
    rows = []
    table = (
        storage.read_table("shards.parquet", ["shard", "column", "rejected"])
        if storage.exists("shards.parquet")
        else None
    )
    if table is not None and table.num_rows:
        for row in table.filter(pc.greater(table["rejected"], 0)).to_pylist():
            if row["column"] in columns and row["shard"] in done:
                for reject in records.read(storage, row["column"], row["shard"]).rejects:
                    if wanted(row["shard"], reject["recording"]):
                        stage = "decode" if row["column"].startswith("audio") else row["column"].split("-")[0]
                        rows.append({"stage": stage, "shard": row["shard"], **reject})
    return pa.Table.from_pylist(rows, schema=REJECTED)
