"""Totals over a shard's segments: how often each code is used, magnitude by pitch.

SHARD.sums.parquet, next to a tar, has a row per name and level; OUT/sums.parquet has the same, added up over
blocks of shards: few rows for a corpus of any size. Recordings with a tombstone count too."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.shards import record as records
from stages.shards.storage import Storage

NAME = "sums.parquet"
BLOCK = 256  # shards added up into one row, and read again when one of them is made again
FIELDS = [("name", pa.string()), ("level", pa.int32()), ("values", pa.list_(pa.float64()))]
SHARD = pa.schema(FIELDS)
TABLE = pa.schema([("column", pa.string()), ("shards", pa.list_(pa.string())), *FIELDS])

Histograms = dict[str, np.ndarray]  # name → float64 (levels, values)


def add(total: Histograms, more: Histograms) -> None:
    """Add arrays (levels, values) in place; a larger one widens the total."""
    for name, values in more.items():
        held = total.get(name, np.zeros((0, 0)))
        if held.shape != values.shape:
            wide = np.zeros(np.maximum(held.shape, values.shape))
            wide[: held.shape[0], : held.shape[1]] = held
            held = total[name] = wide
        held[: values.shape[0], : values.shape[1]] += values


def table(histograms: Histograms) -> pa.Table:
    rows = [(name, level, row) for name in sorted(histograms) for level, row in enumerate(histograms[name])]
    return pa.Table.from_pylist([dict(zip(SHARD.names, row, strict=True)) for row in rows], SHARD)


def _arrays(rows: list[dict]) -> Histograms:
    levels = {}
    for row in sorted(rows, key=lambda row: row["level"]):
        levels.setdefault(row["name"], []).append(row["values"])
    return {name: np.array(values) for name, values in levels.items()}


def read_shard(storage: Storage, column: str, shard: str) -> Histograms:
    """Empty for a column without any, or of an older version."""
    try:
        return _arrays(storage.read_table(records.file(column, shard, NAME)).to_pylist())
    except FileNotFoundError:
        return {}


def read(storage: Storage, column: str) -> tuple[Histograms, int]:
    """(histograms of a column over all gathered shards, how many shards have any)."""
    total, blocks = {}, {}
    if not storage.exists(NAME):
        return total, 0
    rows = _rows(storage.read_table(NAME).filter(pc.field("column") == column))
    for row in rows:
        blocks.setdefault(row["shards"][0], []).append(row)
    for block in blocks.values():
        add(total, _arrays(block))
    return total, len({shard for row in rows for shard in row["shards"]})


def _rows(table: pa.Table) -> list[dict]:
    """Rows as dicts, `values` as arrays: Python's own numbers would take seconds."""
    values = []
    for chunk in table["values"].chunks:
        if len(chunk):
            values += np.split(chunk.flatten().to_numpy(), np.cumsum(pc.list_value_length(chunk))[:-1])
    rows = table.drop_columns("values").to_pylist()
    return [row | {"values": own} for row, own in zip(rows, values, strict=True)]


def gather(storage: Storage, columns: Iterable[str], shards: Iterable[str]) -> None:
    """Replace these shards' part of OUT/sums.parquet: each block that has one of them is added up again."""
    held = storage.read_table(NAME) if storage.exists(NAME) else TABLE.empty_table()
    columns, new = set(columns), set(shards)
    rows = [row for row in held.to_pylist() if row["column"] not in columns or not new & set(row["shards"])]
    with ThreadPoolExecutor(8) as pool:
        for column in sorted(columns):
            blocks = [set(block) for block in held.filter(pc.field("column") == column)["shards"].to_pylist()]
            names = sorted(new.union(*(block for block in blocks if block & new)))
            for start in range(0, len(names), BLOCK):
                own, total, present = names[start : start + BLOCK], {}, []
                found = pool.map(partial(read_shard, storage, column), own)
                for shard, histograms in zip(own, found, strict=True):
                    add(total, histograms)
                    present += [shard] if histograms else []
                rows += [{"column": column, "shards": present, **row} for row in table(total).to_pylist()]
    storage.write_table(NAME, pa.Table.from_pylist(rows, TABLE))
