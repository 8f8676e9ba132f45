"""The tables of what is finished: each a file `OUT/NAME.parquet`, and beside it the parts that were added
since it was put together, `OUT/tables/NAME/PART.parquet`.

A part is one file of each table. That of `shards` is written last and removed first: without it a part does
not count. Of a shard in several files, the last one says what holds."""

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.shards.storage import Storage

T = TypeVar("T")
FOLDER = "tables"
NAMES = ("index", "segments", "sums", "shards")  # in the order in which a part is written
BATCH = 131_072  # rows
AT_ONCE = 16  # small files that are read, written or fetched


def file(name: str, part: str = "") -> str:
    """Of a table's part, or of the table itself."""
    return f"{FOLDER}/{name}/{part}.parquet" if part else f"{name}.parquet"


def add(storage: Storage, tables: dict[str, pa.Table]) -> None:
    """One more part: a table for each of `NAMES`."""
    part = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
    for name in NAMES:
        storage.write_table(file(name, part), tables[name])


def added(storage: Storage) -> list[str]:
    """Parts, from the oldest on."""
    return sorted(name.removesuffix(".parquet") for name in storage.names(f"{FOLDER}/shards"))


def present(storage: Storage, name: str) -> list[str]:
    """Where a table is: '' for its own file, if there is one, and parts."""
    return ([""] if storage.exists(file(name)) else []) + added(storage)


def remove(storage: Storage, parts: list[str]) -> None:
    """Those that the tables' own files hold now, and what killed runs left of others."""
    at_once(storage.delete, [file("shards", part) for part in parts])
    held = set(added(storage))
    left = [
        f"{FOLDER}/{name}/{left}"
        for name in NAMES[:-1]
        for left in storage.names(f"{FOLDER}/{name}")
        if left.removesuffix(".parquet") not in held
    ]
    at_once(storage.delete, left)


def superseded(storage: Storage, name: str) -> dict[str, pa.Table]:
    """Part → rows that a later part has anew, by shard and column; of `segments`, whose rows are of all
    columns of their shard, by shard."""
    keys, there = _keys(name), present(storage, "shards")
    if len(there) < 2:
        return {}
    tables = at_once(lambda part: storage.read_table(file("shards", part), keys), there)
    return _superseded(dict(zip(there, tables, strict=True)), keys)


def _keys(name: str) -> list[str]:
    return ["shard"] if name == "segments" else ["shard", "column"]


def _superseded(tables: dict[str, pa.Table], keys: list[str]) -> dict[str, pa.Table]:
    """tables: of each part, its rows of `shards`."""
    found = []
    for part, rows in tables.items():
        own = rows.group_by(keys).aggregate([])
        found.append(own.append_column("part", pa.repeat(part, own.num_rows)))
    table = pa.concat_tables(found)
    last = table.group_by(keys).aggregate([("part", "max")])
    if last.num_rows == table.num_rows:
        return {}
    gone = table.join(last, keys).filter(pc.field("part") < pc.field("part_max"))
    parts = pc.unique(gone["part"]).to_pylist()
    return {part: gone.filter(pc.field("part") == part).select(keys) for part in parts}


def current(table: pa.Table, gone: pa.Table | None) -> pa.Table:
    """A part's rows without those of `superseded`."""
    if gone is None:
        return table
    of, old = (
        pc.binary_join_element_wise(*(rows[key] for key in gone.column_names), "/").combine_chunks()
        for rows in (table, gone)
    )
    return table.filter(pc.invert(pc.is_in(of, old)))


def read(storage: Storage, name: str, columns: list[str]) -> pa.Table:
    """Columns of `index`, `segments` or `shards`; no rows where it is in no file yet."""
    keys, there = _keys(name), present(storage, name)
    if not there:
        return pa.table({each: pa.nulls(0) for each in columns})
    wanted = list(dict.fromkeys([*columns, *keys]))
    found = at_once(lambda part: storage.read_table(file(name, part), wanted), there)
    tables = dict(zip(there, found, strict=True))
    gone = _superseded(tables, keys) if name == "shards" else superseded(storage, name)
    own = (current(table, gone.get(part)).select(columns) for part, table in tables.items())
    return pa.concat_tables(own, promote_options="permissive")


def batches(
    storage: Storage, name: str, gone: dict[str, pa.Table], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """A table, a few rows at a time. `gone`: as `superseded`; `columns`: those of them that a file has."""
    for part in present(storage, name):
        keys = gone[part].column_names if part in gone else []
        wanted = columns and list(dict.fromkeys([*columns, *keys]))
        with storage.open(file(name, part)) as source:
            # a part in few requests; a table's own file would be in memory as a whole
            table = pq.ParquetFile(source, pre_buffer=bool(part))
            for batch in table.iter_batches(BATCH, columns=wanted):
                yield current(pa.Table.from_batches([batch]), gone.get(part))


def schemas(storage: Storage, name: str) -> list[pa.Schema]:
    """Of the files of a table."""

    def read(part: str) -> pa.Schema:
        with storage.open(file(name, part)) as source:
            return pq.read_schema(source)

    return at_once(read, present(storage, name))


def at_once(work: Callable[[str], T], names: list[str]) -> list[T]:
    """Of each of hundreds of small files, which a store takes its time for."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, names))
