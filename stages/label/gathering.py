"""Indexes and statistics of finished shards, gathered into one parquet each.

`OUT/index.parquet` has one row per segment and column, `OUT/segments.parquet` one per segment,
`OUT/shards.parquet` one per shard and column, `OUT/sums.parquet` a few per column."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shards import column, histograms
from stages.shards import record as records
from stages.shards.storage import Storage, fields
from stages.signal.rates import RATE_HZ

_TIMED = pa.struct(fields(pa.string(), "recording") + fields(pa.float64(), "seconds times_real_time"))
SHARDS = pa.schema(
    fields(pa.string(), "shard column")
    + fields(pa.int64(), "inputs kept rejected segments samples frames bytes")
    + fields(pa.string(), "sha256 device host")
    + fields(pa.float64(), "started wall_s busy_s")
    + fields(pa.string(), "facts")  # JSON
    + fields(pa.float64(), "hours times_real_time")  # audio seconds per second of wall_s
    # in the run that made it; null when another run gathered it
    + fields(pa.int64(), "attempts")
    + fields(pa.string(), "rejects")  # JSON: reason → how many
    # of audio: recordings that took longest for their length; null in older records
    + fields(pa.list_(_TIMED), "slowest")
)
REJECTED = pa.schema(fields(pa.string(), "stage shard recording path reason"))
INDEX_ROWS = pa.schema([*fields(pa.string(), "shard column"), *column.INDEX])
# And each stage's statistics. `columns`: those the row was made of.
SEGMENTS = pa.schema(fields(pa.string(), "columns shard key recording") + fields(pa.int64(), "samples"))
TABLES = {"index": INDEX_ROWS, "segments": SEGMENTS, "shards": SHARDS}
ROW_GROUP = 65_536  # rows collected before they are written


def gathered(storage: Storage, columns: Iterable[str]) -> set[str]:
    """Shards already in OUT/shards.parquet with every one of these columns."""
    if not storage.exists("shards.parquet"):
        return set()
    table = storage.read_table("shards.parquet", ["shard", "column"])
    sets = [set(table.filter(pc.field("column") == name)["shard"].to_pylist()) for name in columns]
    return set.intersection(*sets) if sets else set()


def gather(
    storage: Storage,
    columns: tuple[str, ...],
    shards: list[str],
    live: pa.Array,
    attempts: dict[tuple[str, str], int] | None = None,
) -> None:
    """Add these shards to the tables, replacing the rows they had, without recordings that are not `live`.

    attempts: of (column, shard), in this run."""
    shard_rows = partial(_shard_rows, attempts=attempts or {})
    with ThreadPoolExecutor(8) as pool:
        for name, rows in {"index": _index_rows, "segments": _segment_rows, "shards": shard_rows}.items():
            old = pc.field("shard").isin(pa.array(shards, pa.string()))
            if name != "segments":
                old &= pc.field("column").isin(columns)
            new = pool.map(partial(rows, storage, columns), shards)
            _write(storage, name, chain(_kept(storage, f"{name}.parquet", ~old), _joined(new)), live)
    histograms.gather(storage, columns, shards)


def _write(storage: Storage, name: str, tables: Iterable[pa.Table], live: pa.Array) -> None:
    writer = None
    with storage.attempt(f"{name}.parquet") as path:
        for table in tables:
            if "recording" in table.column_names:
                table = table.filter(pc.is_in(table["recording"], live))
            waiting = [table]
            schemas = [table.schema] if writer is None else [writer.schema, table.schema]
            wider = pa.unify_schemas(schemas, promote_options="permissive")
            if writer is None or wider != writer.schema:
                if writer is not None:  # a later recipe brought new statistics: start again, widened
                    writer.close()
                    waiting.insert(0, pq.read_table(path))
                writer = pq.ParquetWriter(path, wider, compression="zstd")
            for each in waiting:
                writer.write_table(_fit(each, wider))
        if writer is None:
            pq.write_table(TABLES[name].empty_table(), path)
        else:
            writer.close()


def _kept(storage: Storage, file: str, wanted: pc.Expression) -> Iterator[pa.Table]:
    if storage.exists(file):
        with storage.open(file) as source:
            for batch in pq.ParquetFile(source).iter_batches(131_072):
                kept = pa.Table.from_batches([batch]).filter(wanted)
                if kept.num_rows:
                    yield kept


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """In row groups worth reading, not one per shard."""
    held = []
    for table in tables:
        held += [table] if table.num_rows else []
        if sum(each.num_rows for each in held) > ROW_GROUP:
            yield pa.concat_tables(held, promote_options="permissive")
            held = []
    if held:
        yield pa.concat_tables(held, promote_options="permissive")


def segments(storage: Storage, columns: tuple[str, ...], names: list[str]) -> pa.Table:
    table = storage.read_table("segments.parquet", [*names, "columns"])
    return table.filter(pc.field("columns") == " ".join(columns)).select(names)


def sources(segments: pq.ParquetFile) -> Callable[[str], str | None]:
    """Recording → sha256 of its source, by segments.parquet, in 80 bytes a recording."""
    parts = [(np.empty(0, "S16"), np.empty(0, "S64"))]
    for batch in segments.iter_batches(131_072, columns=["recording", "source_sha256"]):
        known = batch.filter(pc.is_valid(batch["source_sha256"]))
        names, digests = (known[name].to_numpy(zero_copy_only=False) for name in known.schema.names)
        first = np.append(True, names[1:] != names[:-1])[
            : len(names)
        ]  # segments of a recording are neighbours
        parts.append((names[first].astype("S16"), digests[first].astype("S64")))
    names, digests = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(names, kind="stable")
    names, digests = names[order], digests[order]

    def find(recording: str) -> str | None:
        place = np.searchsorted(names, recording.encode(), "right") - 1
        return digests[place].decode() if place >= 0 and names[place] == recording.encode() else None

    return find


def ungathered(
    storage: Storage, columns: tuple[str, ...], plan: pa.Table, refused: pa.Array
) -> tuple[set[str], bool]:
    """(shards with a live recording that segments.parquet lacks, whether it holds one no longer live).

    plan: its live rows; refused: recordings a stage rejected, which have no segments."""
    if not storage.exists("segments.parquet"):
        return set(), False
    present = pc.unique(segments(storage, columns, ["recording"])["recording"])
    expected = pc.or_(pc.is_in(plan["recording"], present), pc.is_in(plan["recording"], refused))
    missing = plan.filter(pc.invert(expected))
    stale = pc.any(pc.invert(pc.is_in(present, plan["recording"].combine_chunks()))).as_py()
    return set(missing["shard"].to_pylist()), bool(stale)


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def _index_rows(storage: Storage, columns: tuple[str, ...], shard: str) -> pa.Table:
    indexes = ((name, column.read_index(storage, name, shard)) for name in columns)
    return pa.concat_tables([_prefixed(index, shard=shard, column=name) for name, index in indexes])


def _segment_rows(storage: Storage, columns: tuple[str, ...], shard: str) -> pa.Table:
    first, *others = (storage.read_table(records.file(name, shard, "stats.parquet")) for name in columns)
    for table in others:
        aligned = table.take(pc.index_in(first["key"], table["key"]))  # null where a column lacks the segment
        for name in table.column_names:
            if name not in first.column_names:
                first = first.append_column(name, aligned[name])
    return _prefixed(first, columns=" ".join(columns), shard=shard)


def _prefixed(table: pa.Table, **values: str) -> pa.Table:
    """The table with columns of one value each in front."""
    own = [pa.repeat(value, table.num_rows) for value in values.values()]
    return pa.table([*own, *table.columns], [*values, *table.column_names])


def _shard_rows(
    storage: Storage, columns: tuple[str, ...], shard: str, attempts: dict[tuple[str, str], int]
) -> pa.Table:
    rows = []
    for name in columns:
        record = records.read(storage, name, shard)
        seconds, wall_s = record.samples / RATE_HZ, record.run.get("wall_s")
        reasons = Counter(reject["reason"] for reject in record.rejects)
        rows.append(
            {field: getattr(record, field) for field in SHARDS.names if hasattr(record, field)}
            | {field: record.run.get(field) for field in ("host", "started", "wall_s", "busy_s", "slowest")}
            | {"rejected": len(record.rejects), "rejects": json.dumps(reasons)}
            | {"facts": json.dumps(record.facts), "attempts": attempts.get((name, shard))}
            | {"hours": seconds / 3600, "times_real_time": seconds / wall_s if wall_s else None}
        )
    return pa.Table.from_pylist(rows, schema=SHARDS)


def rejected_rows(
    storage: Storage, columns: Iterable[str], done: set[str], wanted: Callable[[str, str], bool]
) -> pa.Table:
    """Rejections of finished shards (`done`) for OUT/rejected.parquet; reads only records with some."""
    rows, shards = [], SHARDS.empty_table()
    if storage.exists("shards.parquet"):
        shards = storage.read_table("shards.parquet", ["shard", "column", "rejected"])
    for row in shards.filter(pc.field("rejected") > 0).to_pylist():
        name, shard = row["column"], row["shard"]
        if name in columns and shard in done:
            stage = "decode" if name.startswith("audio") else name.split("-")[0]
            rejects = records.read(storage, name, shard).rejects
            own = {"stage": stage, "shard": shard}
            rows += [own | reject for reject in rejects if wanted(shard, reject["recording"])]
    return pa.Table.from_pylist(rows, schema=REJECTED)
