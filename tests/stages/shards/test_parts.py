"""The tables' files and the parts beside them: what is read is what the last one says, wherever it was cut
off."""

import contextlib

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.label import gathering
from stages.label.rows import TABLES, Rows
from stages.shards import histograms, parts, scratch, tables
from stages.shards.storage import Storage

COLUMNS = ("audio", "codes-1")
LIVE = pa.array([f"r{n}" for n in range(9)])


def shard_rows(number: int, count: int) -> Rows:
    """Shard `s<number>` of one recording, of so many segments, each with the statistic `level`."""
    shard, keys = f"s{number}", [f"r{number}-{n}" for n in range(count)]
    own = [{"shard": shard, "key": key, "recording": f"r{number}", "samples": count} for key in keys]
    index = [{"column": name, **row} for name in COLUMNS for row in own]
    segments = [{"columns": " ".join(COLUMNS), **row} for row in own]
    shards = [{"shard": shard, "column": name, "segments": count} for name in COLUMNS]
    made = (
        pa.Table.from_pylist(rows, TABLES[name])
        for name, rows in (("index", index), ("segments", segments), ("shards", shards))
    )
    index, segments, shards = made
    segments = segments.append_column("level", pa.array([float(count)] * count))
    return Rows(index, segments, shards, {"codes-1": {"codes": np.array([[float(count)]])}})


def add(storage: Storage, counts: dict[int, int]) -> None:
    made = {f"s{number}": shard_rows(number, count) for number, count in counts.items()}
    for shard, rows in made.items():
        table = histograms.table(rows.sums["codes-1"])
        storage.write_table(f"columns/codes-1/{shard}.sums.parquet", table)
    gathering.add(storage, made, LIVE, {("audio", "s1"): 2})


def by_sql(storage: Storage, name: str, fields: str) -> list[tuple]:
    with contextlib.ExitStack() as stack, scratch.directory() as folder:
        db = stack.enter_context(tables.connect(folder, 1.0))
        source, paths = tables.gathered(db, storage, name, stack)
        tables.lock(db, paths, storage)
        return sorted(db.execute(f"SELECT {fields} FROM {source}").fetchall())


def check(storage: Storage, truth: dict[int, int]) -> None:
    """All tables hold each shard once, as it was made last."""
    segments = [(f"s{n}", f"r{n}-{k}", count) for n, count in sorted(truth.items()) for k in range(count)]
    read = parts.read(storage, "segments", ["shard", "key", "samples"]).to_pylist()
    assert sorted(tuple(row.values()) for row in read) == segments
    assert by_sql(storage, "segments", "shard, key, samples, level") == [(*row, row[2]) for row in segments]
    index = sorted((name, *row) for name in COLUMNS for row in segments)
    assert by_sql(storage, "index", '"column", shard, key, samples') == index
    shards = sorted((f"s{n}", name, count) for n, count in truth.items() for name in COLUMNS)
    read = parts.read(storage, "shards", ["shard", "column", "segments"]).to_pylist()
    assert sorted(tuple(row.values()) for row in read) == shards
    assert gathering.gathered(storage, COLUMNS) == {f"s{n}" for n in truth}


runs = st.lists(st.dictionaries(st.integers(0, 8), st.integers(1, 3), min_size=1), min_size=1, max_size=4)


@given(runs, st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_each_shard_is_there_once_as_it_was_made_last(tmp_path_factory, made, compact_at):
    storage, truth = Storage(tmp_path_factory.mktemp("out")), {}
    for number, counts in enumerate(made):
        add(storage, counts)
        truth |= counts
        check(storage, truth)
        if number == compact_at:
            gathering.compact(storage, LIVE)
            assert not parts.added(storage) and not storage.names("tables/index")
            check(storage, truth)
    gathering.compact(storage, LIVE)
    check(storage, truth)
    total, shards = histograms.read(storage, "codes-1")
    assert (total["codes"].tolist(), shards) == ([[sum(truth.values())]], len(truth))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("after", range(12))
def test_a_kill_at_any_write_or_removal_loses_and_doubles_nothing(tmp_path, monkeypatch, after, first):
    """Of two parts that are put together with a file that holds one of their shards already; or, for the
    first time, with another part."""
    storage, left = Storage(tmp_path), [after]
    add(storage, {1: 2, 2: 1})
    if not first:
        gathering.compact(storage, LIVE)
    add(storage, {2: 3, 3: 1})
    add(storage, {4: 1})
    truth = {1: 2, 2: 3, 3: 1, 4: 1}

    def counted(work):
        def inside(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return work(*args)

        return inside

    with monkeypatch.context() as patch:
        patch.setattr(parts, "AT_ONCE", 1)
        patch.setattr(Storage, "_publish", counted(Storage._publish))
        patch.setattr(Storage, "delete", counted(Storage.delete))
        with contextlib.suppress(Killed):
            gathering.compact(storage, LIVE)
        assert after == 11 or left[0] < 0, "there is a write or removal of this number"
    check(storage, truth)
    assert gathering.due(storage) == bool(parts.added(storage))
    gathering.compact(storage, LIVE)
    check(storage, truth)
    assert histograms.read(storage, "codes-1")[0]["codes"].tolist() == [[7]]
    assert not any(storage.names(f"tables/{name}") for name in parts.NAMES)


def test_a_part_that_was_cut_off_does_not_count(tmp_path, monkeypatch):
    storage, left = Storage(tmp_path), [3]
    publish = Storage._publish

    def few(self, path, name):
        left[0] -= name.startswith("tables/")
        if left[0] < 0:
            raise Killed
        publish(self, path, name)

    add(storage, {1: 2})
    monkeypatch.setattr(Storage, "_publish", few)
    with pytest.raises(Killed):
        add(storage, {2: 1})
    monkeypatch.undo()
    assert len(storage.names("tables/index")) == 2
    check(storage, {1: 2})
    gathering.compact(storage, LIVE)
    assert not storage.names("tables/index")
    check(storage, {1: 2})


def test_when_parts_are_put_together(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    assert not gathering.due(storage) and not gathering.due(storage, whole=True)
    add(storage, {1: 1})
    assert gathering.due(storage), "nothing else is there"
    gathering.compact(storage, LIVE)
    assert not gathering.due(storage, whole=True)
    monkeypatch.setattr(gathering, "SMALL", 0)
    add(storage, dict.fromkeys(range(2, 9), 3))
    assert gathering.due(storage), "more than a quarter of what there is"
    gathering.compact(storage, LIVE)
    base = storage.size
    monkeypatch.setattr(Storage, "size", lambda self, name: base(name) * (1 if "tables" in name else 99))
    add(storage, {0: 1})
    assert not gathering.due(storage) and gathering.due(storage, whole=True)
    add(storage, {1: 1})
    assert gathering.due(storage), "a shard is there twice"


def test_a_table_that_is_nowhere(tmp_path):
    storage = Storage(tmp_path)
    assert parts.read(storage, "shards", ["shard", "column"]).column_names == ["shard", "column"]
    with pytest.raises(FileNotFoundError, match="segments.parquet"), contextlib.ExitStack() as stack:
        tables.gathered(duckdb.connect(), storage, "segments", stack)
