"""The rows that a finished shard adds to the tables of an OUT."""

import json
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

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
INDEX_ROWS = pa.schema([*fields(pa.string(), "shard column"), *column.INDEX])
# And each stage's statistics. `columns`: those the row was made of.
SEGMENTS = pa.schema(fields(pa.string(), "columns shard key recording") + fields(pa.int64(), "samples"))
TABLES = {"index": INDEX_ROWS, "segments": SEGMENTS, "shards": SHARDS}


class Rows(NamedTuple):
    """Of one finished shard."""

    index: pa.Table
    segments: pa.Table
    shards: pa.Table
    sums: dict[str, histograms.Histograms]  # by column


def rows(storage: Storage, columns: tuple[str, ...], shard: str) -> Rows:
    sums = {name: histograms.read_shard(storage, name, shard) for name in columns}
    made = (of(storage, columns, shard) for of in (_index_rows, _segment_rows, _shard_rows))
    return Rows(*made, sums)


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


def _shard_rows(storage: Storage, columns: tuple[str, ...], shard: str) -> pa.Table:
    rows = []
    for name in columns:
        record = records.read(storage, name, shard)
        seconds, wall_s = record.samples / RATE_HZ, record.run.get("wall_s")
        reasons = Counter(reject["reason"] for reject in record.rejects)
        rows.append(
            {field: getattr(record, field) for field in SHARDS.names if hasattr(record, field)}
            | {field: record.run.get(field) for field in ("host", "started", "wall_s", "busy_s", "slowest")}
            | {"rejected": len(record.rejects), "rejects": json.dumps(reasons)}
            | {"facts": json.dumps(record.facts)}
            | {"hours": seconds / 3600, "times_real_time": seconds / wall_s if wall_s else None}
        )
    return pa.Table.from_pylist(rows, schema=SHARDS)
