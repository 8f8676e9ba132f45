"""Sums over shards: what is gathered equals what is added up from all files, whatever is made anew in which order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.shards import record, sums
from stages.shards.column import ColumnWriter, npy_bytes
from stages.shards.storage import Storage

NPY = npy_bytes(np.zeros((1, 2), np.uint16))
ROW = {"recording": "r", "start": 0, "samples": 320, "frames": 1}


def put(storage: Storage, shard: str, counts: list[list[int]]) -> None:
    storage.write_table(record.file("codes-1", shard, sums.NAME), sums.table({"codes": np.array(counts, np.float64)}))


def test_a_rejected_recordings_sums_are_taken_back(tmp_path):
    writer = ColumnWriter(tmp_path / "x.tar")
    one = {"codes": np.array([[1, 0], [0, 1]])}
    for number, keep in enumerate((True, False, True)):
        writer.add(f"k{number}-0", {"codes.npy": NPY}, ROW, {}, one)
        writer.add(f"k{number}-1", {"codes.npy": NPY}, ROW, {}, one)
        writer.keep({}) if keep else writer.take_back()
    writer.close()
    assert [(r["level"], r["values"]) for r in writer.sums.to_pylist()] == [(0, [4, 0]), (1, [0, 4])]


def test_a_wider_array_widens_the_total():
    total: sums.Sums = {}
    sums.add(total, {"codes": np.ones((1, 2))})
    sums.add(total, {"codes": np.ones((2, 3))})
    assert total["codes"].tolist() == [[2, 2, 1], [1, 1, 1]]


@given(st.lists(st.dictionaries(st.integers(0, 12), st.integers(0, 9), min_size=1), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_gathering_in_any_order_is_the_total(tmp_path_factory, runs):
    """Each run makes some shards, new or anew, and gathers them."""
    storage = Storage(tmp_path_factory.mktemp("out"))
    truth: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "BLOCK", 3)
        for run in runs:
            for shard, count in run.items():
                put(storage, f"s{shard:02d}", [[count, 1]])
                truth[f"s{shard:02d}"] = count
            sums.gather(storage, ["codes-1"], [f"s{shard:02d}" for shard in run])
    total, shards = sums.read(storage, "codes-1")
    assert shards == len(truth)
    assert total["codes"].tolist() == [[sum(truth.values()), len(truth)]]


def test_a_shard_of_an_older_version_has_none_and_others_columns_stay(tmp_path):
    storage = Storage(tmp_path)
    put(storage, "s1", [[5]])
    sums.gather(storage, ["codes-1"], ["s1", "s2"])
    sums.gather(storage, ["cqt-1"], ["s1"])
    assert sums.read(storage, "codes-1")[1] == 1 and sums.read_shard(storage, "codes-1", "s2") == {}
    assert sums.read(storage, "cqt-1") == ({}, 0)
