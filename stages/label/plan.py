"""plan: recordings → shards of about `shard_minutes`. A pure function of the previous plan and the catalog.

A planned recording keeps its place: new recordings make new shards, missing or changed ones only get a
tombstone. Tables stay in DuckDB, which spills to disk: 2.4 million recordings take under 4 GiB."""

import hashlib
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from stages.label.scan.probing import UNREADABLE
from stages.shards import scratch
from stages.shards.catalog import BYTES_PER_S, CATALOG, PLAN, check_schema, write_parquet
from stages.shards.tables import connect

MEMORY_GB = 1.5  # M bench_plan: DuckDB's share; Arrow and the packing take about as much again


@dataclass(frozen=True)
class PlanSummary:
    recordings: int  # live
    shards: int  # with a live recording
    new_recordings: int
    new_shards: int
    replanned: int  # moved to new shards on request
    tombstoned: dict[str, int]  # in the whole plan, by reason
    valid: int  # live recordings of the validation split
    hours: float  # live, by header
    valid_hours: float


def plan(
    previous: Path | None,
    catalog: Path,
    out: Path,
    *,
    shard_minutes: float,
    validation_share: float,
    retry: Iterable[str] = (),
) -> PlanSummary:
    """Write the next plan to the local path `out` (may be `previous`), whole or not at all.

    shard_minutes     of audio in a shard; recordings stay whole: a longer one gets a shard of its own
    validation_share  of the recordings, by a hash of their id; the split of a recording, of its copies and of
                      its later versions (same path) never changes
    retry             live recordings to plan again, in new shards

    At least one of two or more recordings planned first is for validation. When none of those is left, the
    next new recording is, never one that was trained on. ValueError: impossible values, or files that are no
    catalog or plan."""
    if not shard_minutes > 0:
        raise ValueError(f"plan.shard_minutes is {shard_minutes}; give minutes above 0, such as 60")
    if not 0 <= validation_share < 1:
        raise ValueError(f"plan.validation_share is {validation_share}; give a share from 0 to below 1")
    check_schema(Path(catalog), CATALOG, "catalog")
    with (
        scratch.directory() as spill,
        closing(connect(Path(spill), MEMORY_GB)) as db,
    ):
        _load(db, previous, Path(catalog), retry)
        _run(db, _NEW)
        _run(db, "CREATE TABLE splits AS " + _SPLIT, {"share": validation_share})
        if validation_share > 0:
            _run(db, _AT_LEAST_ONE)
        db.register("packed", _pack(db, shard_minutes * 60))
        _run(db, _NEXT)
        names = ", ".join(f'"{name}"' for name in PLAN.names)
        rows = db.sql(f'SELECT {names} FROM next ORDER BY "order"')
        write_parquet(Path(out), PLAN, rows.to_arrow_reader(65_536))
        return _summary(db)


def _run(db: duckdb.DuckDBPyConnection, query: str, values: dict | None = None) -> list[tuple]:
    return db.execute(query, values).fetchall()


def _load(db: duckdb.DuckDBPyConnection, previous: Path | None, catalog: Path, retry: Iterable[str]) -> None:
    db.register("cat", ds.dataset(catalog, format="parquet"))
    if previous is not None and Path(previous).exists():
        check_schema(Path(previous), PLAN, "plan")
        db.register("old", ds.dataset(Path(previous), format="parquet"))
    else:
        db.register("old", PLAN.empty_table())
    db.register("wanted", pa.table({"recording": pa.array(sorted(set(retry)), pa.string())}))


# To be placed: recordings never planned, and live ones to plan again.
_NEW = """
CREATE TABLE to_place AS
SELECT k.recording, k.size, k.duration_s, 0 AS attempt FROM cat k
    WHERE k.status = 'kept' AND k.recording NOT IN (SELECT recording FROM old)
UNION ALL
SELECT o.recording, o.size, o.duration_s, o.attempt + 1 FROM old o SEMI JOIN wanted USING (recording)
    WHERE o.recording IN (SELECT recording FROM cat WHERE status = 'kept')
"""

# A new recording's split: that of the same bytes, or of the same path, planned before; else by hash.
# Fifteen hex digits always fit BIGINT.
_SPLIT = """
WITH fresh AS (
    SELECT k.recording, k.size, k.quick, k.sha256, k.path_bytes FROM cat k
    WHERE k.status = 'kept' AND k.recording NOT IN (SELECT recording FROM old)
), content AS (
    SELECT f.recording, arg_min(o.split, o."order") AS split FROM fresh f
    JOIN old o ON o.size = f.size AND o.quick = f.quick AND coalesce(o.sha256 = f.sha256, true) GROUP BY 1
), place AS (
    SELECT f.recording, arg_max(o.split, o."order") AS split
    FROM fresh f JOIN old o USING (path_bytes) GROUP BY 1
), hashed AS (
    SELECT recording, CAST('0x' || substr(sha256('split ' || recording), 1, 15) AS BIGINT) / 2.0 ** 60 AS draw
    FROM fresh
)
SELECT h.recording, h.draw, content.split IS NOT NULL OR place.split IS NOT NULL AS inherited,
    coalesce(content.split, place.split, CASE WHEN h.draw < $share THEN 'valid' ELSE 'train' END) AS split
FROM hashed h LEFT JOIN content USING (recording) LEFT JOIN place USING (recording)
"""

_AT_LEAST_ONE = """
UPDATE splits SET split = 'valid'
WHERE recording = (SELECT arg_min(recording, (draw, recording)) FROM splits WHERE NOT inherited)
    AND NOT EXISTS (SELECT 1 FROM splits WHERE split = 'valid')
    AND NOT EXISTS (SELECT 1 FROM old JOIN cat USING (recording)
        WHERE cat.status = 'kept' AND old.split = 'valid')
    AND (SELECT count(*) FROM cat WHERE status = 'kept') > 1
"""

# Why a planned recording is no longer kept; the first reason stays.
_NEXT = f"""
CREATE TABLE kept AS SELECT recording, path, path_bytes, size, mtime_ns, quick, sha256, duration_s
    FROM cat WHERE status = 'kept';
CREATE TABLE copies AS SELECT DISTINCT recording FROM cat WHERE status = 'duplicate'
    AND recording IN (SELECT recording FROM old);
CREATE TABLE places AS SELECT c.path_bytes, any_value(CASE
        WHEN c.status = 'excluded' THEN 'excluded'
        WHEN c.status = 'rejected' AND starts_with(c.reason, '{UNREADABLE}') THEN 'vanished'
        ELSE 'edited' END) AS fate
    FROM cat c WHERE c.path_bytes IN (SELECT path_bytes FROM old) GROUP BY 1;
CREATE TABLE next AS
SELECT o.recording, coalesce(p.shard, o.shard) AS shard, coalesce(p.place + h.base, o."order") AS "order",
    coalesce(p.attempt, o.attempt) AS attempt, coalesce(k.path, o.path) AS path,
    coalesce(k.path_bytes, o.path_bytes) AS path_bytes, o.size, coalesce(k.mtime_ns, o.mtime_ns) AS mtime_ns,
    o.quick, coalesce(k.sha256, o.sha256) AS sha256, o.duration_s, o.split,
    CASE WHEN k.recording IS NULL THEN coalesce(o.tombstone,
        CASE WHEN c.recording IS NOT NULL THEN 'duplicate' END,
        f.fate, 'vanished') END AS tombstone
FROM old o CROSS JOIN (SELECT coalesce(max("order") + 1, 0) AS base FROM old) h
LEFT JOIN packed p USING (recording) LEFT JOIN kept k USING (recording) LEFT JOIN copies c USING (recording)
LEFT JOIN places f ON f.path_bytes = o.path_bytes
UNION ALL BY NAME
SELECT k.*, p.shard, p.place + h.base AS "order", p.attempt, s.split, NULL::VARCHAR AS tombstone
FROM packed p CROSS JOIN (SELECT coalesce(max("order") + 1, 0) AS base FROM old) h
JOIN kept k USING (recording) JOIN splits s USING (recording)
"""


def _pack(db: duckdb.DuckDBPyConnection, shard_s: float) -> pa.Table:
    """(recording, attempt, shard, place) of `to_place` by id: ids are hashes, so a shard mixes albums."""
    query = "SELECT recording, size, duration_s, attempt FROM to_place ORDER BY recording"
    ids, sizes, durations, attempts = (c.to_pylist() for c in db.sql(query).to_arrow_table().columns)
    seconds = (d if d > 0 else size / BYTES_PER_S for d, size in zip(durations, sizes, strict=True))
    starts = next_fit(seconds, shard_s)
    shards = []
    for start, stop in zip(starts, [*starts, len(ids)][1:], strict=True):
        members = zip(ids[start:stop], attempts[start:stop], strict=True)
        shards += [shard_name(members)] * (stop - start)
    columns = (ids, pa.string()), (attempts, pa.int32()), (shards, pa.string()), (range(len(ids)), pa.int64())
    arrays = [pa.array(values, kind) for values, kind in columns]
    return pa.table(arrays, ["recording", "attempt", "shard", "place"])


def next_fit(lengths_s: Iterable[float], shard_s: float) -> list[int]:
    """Index of the first recording of each shard: one that would exceed its shard starts the next."""
    starts = []
    filled_s = 0.0
    for place, length_s in enumerate(lengths_s):
        if not starts or filled_s + length_s > shard_s:
            starts.append(place)
            filled_s = 0.0
        filled_s += length_s
    return starts


def shard_name(members: Iterable[tuple[str, int]]) -> str:
    """`s` and 12 hex digits from (recording, attempt) of each member: content, not a position.

    With the attempt, a recording planned again alone does not get the name of its finished shard."""
    text = "\n".join(f"{recording}#{attempt}" if attempt else recording for recording, attempt in members)
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _summary(db: duckdb.DuckDBPyConnection) -> PlanSummary:
    live = """SELECT count(*), count(DISTINCT shard), count(*) FILTER (split = 'valid'),
        coalesce(sum(duration_s), 0) / 3600, coalesce(sum(duration_s) FILTER (split = 'valid'), 0) / 3600
        FROM next WHERE tombstone IS NULL"""
    recordings, shards, valid, hours, valid_hours = _run(db, live)[0]
    placed = """SELECT count(*) FILTER (attempt = 0), count(DISTINCT shard), count(*) FILTER (attempt > 0)
        FROM packed"""
    reasons = "SELECT tombstone, count(*) FROM next WHERE tombstone IS NOT NULL GROUP BY 1 ORDER BY 1"
    tombstoned = dict(_run(db, reasons))
    return PlanSummary(recordings, shards, *_run(db, placed)[0], tombstoned, valid, hours, valid_hours)
