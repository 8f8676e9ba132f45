"""Totals over a shard's segments: how often each code is used, magnitude by pitch.

SHARD.sums.parquet, next to a tar, has a row per name and level; OUT/sums.parquet and its parts have the
same, added up over blocks of shards: few rows for a corpus of any size. Recordings with a tombstone count
too, and a shard that was made again counts twice until the parts are put together."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.shards import parts
from stages.shards import record as records
from stages.shards.storage import Storage

NAME = "sums.parquet"
BLOCK = 256  # shards added up into one row at most, and read again when one of them is made again
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


def block(shards: dict[str, dict[str, Histograms]]) -> pa.Table:
    """Rows of OUT/sums.parquet: of each column, these shards added up. shards: name → column → histograms."""
    found: dict[str, tuple[list[str], Histograms]] = {}
    for shard, columns in shards.items():
        for column, histograms in columns.items():
            names, total = found.setdefault(column, ([], {}))
            names += [shard] if histograms else []
            add(total, histograms)
    return _table((column, names, total) for column, (names, total) in sorted(found.items()))


def _table(blocks: Iterable[tuple[str, list[str], Histograms]]) -> pa.Table:
    rows = []
    for column, shards, total in blocks:
        rows += [{"column": column, "shards": shards, **row} for row in table(total).to_pylist()]
    return pa.Table.from_pylist(rows, TABLE)


def read(storage: Storage, column: str) -> tuple[Histograms, int]:
    """(histograms of a column over all gathered shards, how many shards have any)."""
    total, names = {}, set()
    for shards, histograms in _blocks(storage).get(column, ()):
        add(total, histograms)
        names.update(shards)
    return total, len(names)


def _blocks(storage: Storage) -> dict[str, list[tuple[list[str], Histograms]]]:
    """Column → blocks, of all files."""
    found: dict[str, list] = {}
    for part in parts.present(storage, "sums"):
        own: dict[tuple[str, str], list[dict]] = {}
        for row in _rows(storage.read_table(parts.file("sums", part))):
            own.setdefault((row["column"], row["shards"][0]), []).append(row)
        for (column, _), rows in own.items():
            found.setdefault(column, []).append((rows[0]["shards"], _arrays(rows)))
    return found


def _rows(table: pa.Table) -> list[dict]:
    """Rows as dicts, `values` as arrays: Python's own numbers would take seconds."""
    values = []
    for chunk in table["values"].chunks:
        if len(chunk):
            values += np.split(chunk.flatten().to_numpy(), np.cumsum(pc.list_value_length(chunk))[:-1])
    rows = table.drop_columns("values").to_pylist()
    return [row | {"values": own} for row, own in zip(rows, values, strict=True)]


def compact(storage: Storage, anew: dict[str, set[str]]) -> None:
    """Put OUT/sums.parquet together. A block that has one of the shards `anew` (column → names) is added up
    again from the shards' own files."""
    held, whole = _blocks(storage), []
    for column in sorted(held.keys() | anew.keys()):
        again, last = anew.get(column, set()), ([], {})
        names = set(again)
        for shards, histograms in held.get(column, ()):
            if not again.isdisjoint(shards):
                names.update(shards)
                continue
            if len(last[0]) + len(shards) > BLOCK:
                whole.append((column, *last))
                last = ([], {})
            last[0].extend(shards)
            add(last[1], histograms)
        whole.append((column, *last))
        whole += [(column, *again) for again in _again(storage, column, sorted(names))]
    storage.write_table(NAME, _table(whole))


def _again(storage: Storage, column: str, names: list[str]) -> Iterator[tuple[list[str], Histograms]]:
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), BLOCK):
            own, total, present = names[start : start + BLOCK], {}, []
            for shard, histograms in zip(
                own, pool.map(partial(read_shard, storage, column), own), strict=True
            ):
                add(total, histograms)
                present += [shard] if histograms else []
            yield present, total
