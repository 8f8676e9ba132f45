"""Sums over shards: what is gathered equals what is added up from all files, whatever is made anew in which
order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shards import histograms, record
from stages.shards.column import ColumnWriter, npy_bytes
from stages.shards.storage import Storage

NPY = npy_bytes(np.zeros((1, 2), np.uint16))
ROW = {"recording": "r", "start": 0, "samples": 320, "frames": 1}


def put(storage: Storage, shard: str, counts: list[list[int]]) -> None:
    storage.write_table(
        record.file("codes-1", shard, histograms.NAME),
        histograms.table({"codes": np.array(counts, np.float64)}),
    )


def again(storage: Storage, columns: list[str], shards: list[str]) -> None:
    histograms.compact(storage, dict.fromkeys(columns, set(shards)))


def test_a_rejected_recordings_sums_are_taken_back(tmp_path):
    writer = ColumnWriter(tmp_path / "x.tar")
    one = {"codes": np.array([[1, 0], [0, 1]])}
    for number, keep in enumerate((True, False, True)):
        writer.add(f"k{number}-0", {"codes.npy": NPY}, ROW, {}, one)
        writer.add(f"k{number}-1", {"codes.npy": NPY}, ROW, {}, one)
        writer.keep({}) if keep else writer.take_back()
    writer.close()
    assert [(r["level"], r["values"]) for r in writer.histograms.to_pylist()] == [(0, [4, 0]), (1, [0, 4])]


def test_a_wider_array_widens_the_total():
    total: histograms.Sums = {}
    histograms.add(total, {"codes": np.ones((1, 2))})
    histograms.add(total, {"codes": np.ones((2, 3))})
    assert total["codes"].tolist() == [[2, 2, 1], [1, 1, 1]]


@given(st.lists(st.dictionaries(st.integers(0, 12), st.integers(0, 9), min_size=1), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_gathering_in_any_order_is_the_total(tmp_path_factory, runs):
    """Each run makes some shards, new or anew, and gathers them."""
    storage = Storage(tmp_path_factory.mktemp("out"))
    truth: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histograms, "BLOCK", 3)
        for run in runs:
            for shard, count in run.items():
                put(storage, f"s{shard:02d}", [[count, 1]])
                truth[f"s{shard:02d}"] = count
            again(storage, ["codes-1"], [f"s{shard:02d}" for shard in run])
    total, shards = histograms.read(storage, "codes-1")
    assert shards == len(truth)
    assert total["codes"].tolist() == [[sum(truth.values()), len(truth)]]


def test_a_shard_of_an_older_version_has_none_and_others_columns_stay(tmp_path):
    storage = Storage(tmp_path)
    put(storage, "s1", [[5]])
    again(storage, ["codes-1"], ["s1", "s2"])
    again(storage, ["cqt-1"], ["s1"])
    assert (
        histograms.read(storage, "codes-1")[1] == 1 and histograms.read_shard(storage, "codes-1", "s2") == {}
    )
    assert histograms.read(storage, "cqt-1") == ({}, 0)


def test_what_is_added_stays_as_it_was_and_a_narrower_array_leaves_the_rest():
    one, total = np.ones((2, 3)), {}
    histograms.add(total, {"a": one})
    histograms.add(total, {"a": np.ones((1, 2)), "b": np.ones((1, 1))})
    assert total["a"].tolist() == [[2, 2, 1], [1, 1, 1]] and total["b"].tolist() == [[1]]
    assert one.tolist() == [[1, 1, 1], [1, 1, 1]] and total["a"].dtype == np.float64
    histograms.add(total, {"b": np.full((2, 1), 2), "c": one, "d": one})
    assert total["b"].tolist() == [[3], [2]] and list(total) == ["a", "b", "c", "d"]


def test_a_shards_sums_are_read_as_they_were_written(tmp_path):
    storage = Storage(tmp_path)
    written = {"z": np.array([[1.0, 2.0], [3.0, 4.0]]), "a": np.array([[0.5]])}
    table = histograms.table(written)
    assert table.schema == histograms.SHARD and [(r["name"], r["level"]) for r in table.to_pylist()] == [
        ("a", 0),
        ("z", 0),
        ("z", 1),
    ]
    storage.write_table(record.file("codes-1", "s1", histograms.NAME), table.take([2, 0, 1]))
    read = histograms.read_shard(storage, "codes-1", "s1")
    assert {name: values.tolist() for name, values in read.items()} == {"a": [[0.5]], "z": [[1, 2], [3, 4]]}


def test_a_shard_made_anew_replaces_its_sums_and_a_column_without_any_has_none(tmp_path):
    storage = Storage(tmp_path)
    assert histograms.read(storage, "codes-1") == ({}, 0)
    for shard, count in (("s1", 5), ("s2", 7)):
        put(storage, shard, [[count], [1]])
    again(storage, ["codes-1", "cqt-1"], ["s1", "s2"])
    put(storage, "s1", [[50], [1]])
    again(storage, ["codes-1"], ["s1"])
    total, shards = histograms.read(storage, "codes-1")
    assert total["codes"].tolist() == [[57], [2]] and shards == 2
    storage.delete(record.file("codes-1", "s2", histograms.NAME))
    again(storage, ["codes-1"], ["s2"])
    total, shards = histograms.read(storage, "codes-1")
    assert total["codes"].tolist() == [[50], [1]] and shards == 1


def test_shards_are_added_up_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(histograms, "BLOCK", 2)
    storage = Storage(tmp_path)
    for number in range(5):
        put(storage, f"s{number}", [[1]])
    again(storage, ["codes-1"], [f"s{number}" for number in range(5)])
    assert [r["shards"] for r in storage.read_table(histograms.NAME).to_pylist()] == [
        ["s0", "s1"],
        ["s2", "s3"],
        ["s4"],
    ]
    assert histograms.read(storage, "codes-1")[0]["codes"].tolist() == [[5]]
