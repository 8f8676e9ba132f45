"""Indexes and statistics of finished shards, gathered into a few tables.

`OUT/index.parquet` has one row per segment and column, `OUT/segments.parquet` one per segment,
`OUT/shards.parquet` one per shard and column, `OUT/sums.parquet` a few per column; each with parts that were
added later (`stages/shards/parts.py`)."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.label.rows import TABLES, Rows, rows
from stages.shards import histograms, parts
from stages.shards import record as records
from stages.shards.storage import Storage, fields

REJECTED = pa.schema(fields(pa.string(), "stage shard recording path reason"))
ROW_GROUP = 65_536  # rows collected before they are written
PART = 256  # shards of a part
SMALL = 64 << 20  # bytes of tables that are always put together


def gathered(storage: Storage, columns: Iterable[str]) -> set[str]:
    """Shards that the tables have with every one of these columns."""
    table = parts.read(storage, "shards", ["shard", "column"])
    sets = [set(table.filter(pc.field("column") == name)["shard"].to_pylist()) for name in columns]
    return set.intersection(*sets) if sets else set()


def add(
    storage: Storage, made: dict[str, Rows], live: pa.Array, attempts: dict[tuple[str, str], int]
) -> None:
    """One more part of the tables: these shards, without recordings that are not `live`.

    attempts: of (column, shard), in this run."""
    ordered = [made[shard] for shard in sorted(made)]
    tables = {name: _concat([getattr(each, name) for each in ordered]) for name in TABLES}
    for name in ("index", "segments"):
        tables[name] = _living(tables[name], live)
    places = zip(*(tables["shards"][name].to_pylist() for name in ("column", "shard")), strict=True)
    own = pa.array([attempts.get(place) for place in places], pa.int64())
    at = tables["shards"].schema.get_field_index("attempts")
    tables["shards"] = tables["shards"].set_column(at, "attempts", own)
    tables["sums"] = histograms.block({shard: made[shard].sums for shard in sorted(made)})
    parts.add(storage, tables)


def gather(
    storage: Storage,
    columns: tuple[str, ...],
    shards: list[str],
    live: pa.Array,
    attempts: dict[tuple[str, str], int] | None = None,
) -> None:
    """Add finished shards to the tables, by their own files."""
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(shards), PART):
            some = shards[start : start + PART]
            made = pool.map(partial(rows, storage, columns), some)
            add(storage, dict(zip(some, made, strict=True)), live, attempts or {})


def compact(storage: Storage, live: pa.Array) -> None:
    """Put each table together in one file, without recordings that are no longer `live`; the parts go."""
    held = parts.added(storage)
    gone = {name: parts.superseded(storage, name) for name in TABLES}
    anew: dict[str, set[str]] = {}
    for table in gone["shards"].values():
        for shard, name in zip(table["shard"].to_pylist(), table["column"].to_pylist(), strict=True):
            anew.setdefault(name, set()).add(shard)
    # `shards` first: from then on its parts say what holds, whatever the other tables have so far.
    for name in ("shards", "index", "segments"):
        tables = parts.batches(storage, name, gone[name])
        _write(storage, name, tables if name == "shards" else (_living(table, live) for table in tables))
    histograms.compact(storage, anew)
    parts.remove(storage, held)


def _living(table: pa.Table, live: pa.Array) -> pa.Table:
    """Rows of recordings that are live. A lookup is made of the table's few, not of the millions of the
    plan."""
    own = live.filter(pc.is_in(live, pc.unique(table["recording"])))
    return table.filter(pc.is_in(table["recording"], own))


def due(storage: Storage, whole: bool = False) -> bool:
    """Whether there are parts, and they are worth being put together, or `whole`: a shard is then written
    again a few times at most, however many come later. Always if one was made again."""
    own = filter(storage.exists, map(parts.file, TABLES))  # not all, after a kill
    added = (parts.file(name, part) for part in parts.added(storage) for name in TABLES)
    base, beside = (sum(parts.at_once(storage.size, [*files])) for files in (own, added))
    grown = whole or beside > base / 4 or base + beside < SMALL
    return bool(beside) and (grown or bool(parts.superseded(storage, "shards")))


def _write(storage: Storage, name: str, tables: Iterable[pa.Table]) -> None:
    whole = pa.unify_schemas([TABLES[name], *parts.schemas(storage, name)], promote_options="permissive")
    with (
        storage.attempt(parts.file(name)) as path,
        pq.ParquetWriter(path, whole, compression="zstd") as writer,
    ):
        for table in _joined(tables):
            writer.write_table(_fit(table, whole))
        writer.close()  # before the file gets its name


def _concat(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="permissive")


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """In row groups worth reading, not one per shard."""
    held = []
    for table in tables:
        held += [table] if table.num_rows else []
        if sum(each.num_rows for each in held) > ROW_GROUP:
            yield _concat(held)
            held = []
    if held:
        yield _concat(held)


def segments(storage: Storage, columns: tuple[str, ...], names: list[str]) -> Iterator[pa.Table]:
    """Of these columns, a few rows at a time."""
    gone = parts.superseded(storage, "segments")
    for table in parts.batches(storage, "segments", gone, [*names, "columns"]):
        yield table.filter(pc.field("columns") == " ".join(columns)).select(names)


def sources(storage: Storage) -> Callable[[str], str | None]:
    """Recording → sha256 of its source, by the segments, in 80 bytes a recording."""
    found = [(np.empty(0, "S16"), np.empty(0, "S64"))]
    for table in parts.batches(storage, "segments", {}, ["recording", "source_sha256"]):
        known = table.filter(pc.is_valid(table["source_sha256"]))
        names, digests = (known[name].to_numpy() for name in ("recording", "source_sha256"))
        # segments of a recording are neighbours
        first = np.append(True, names[1:] != names[:-1])[: len(names)]
        found.append((names[first].astype("S16"), digests[first].astype("S64")))
    names, digests = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(names, kind="stable")  # the last one holds
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
    if not parts.present(storage, "segments"):
        return set(), False
    own = (table["recording"] for table in segments(storage, columns, ["recording"]))
    none = pa.array([], pa.string())
    present = pc.unique(pa.chunked_array([none, *map(pc.unique, own)]))
    expected = pc.or_(pc.is_in(plan["recording"], present), pc.is_in(plan["recording"], refused))
    missing = plan.filter(pc.invert(expected))
    stale = pc.any(pc.invert(pc.is_in(present, plan["recording"].combine_chunks()))).as_py()
    return set(missing["shard"].to_pylist()), bool(stale)


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def rejected_rows(
    storage: Storage, columns: Iterable[str], done: set[str], wanted: Callable[[str, str], bool]
) -> pa.Table:
    """Rejections of finished shards (`done`) for OUT/rejected.parquet; reads only records with some."""
    rows = []
    shards = parts.read(storage, "shards", ["shard", "column", "rejected"])
    for row in shards.filter(pc.field("rejected") > 0).to_pylist():
        name, shard = row["column"], row["shard"]
        if name in columns and shard in done:
            stage = "decode" if name.startswith("audio") else name.split("-")[0]
            rejects = records.read(storage, name, shard).rejects
            own = {"stage": stage, "shard": shard}
            rows += [own | reject for reject in rejects if wanted(shard, reject["recording"])]
    return pa.Table.from_pylist(rows, schema=REJECTED)
