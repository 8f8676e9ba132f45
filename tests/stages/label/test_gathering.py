"""What the audit gathers of finished shards: OUT/index.parquet, segments.parquet, shards.parquet, and what is
left out of them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label import audit, gathering
from stages.label.rows import TABLES
from stages.label.shard import ShardWorker
from stages.shards import column, histograms, parts
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.stages.label.made import SEGMENT, Ear, audio, codes_job

BOTH = ("audio", "codes-ear")
LIVE = pa.array(["a", "b", "c", "d"])


def rows(storage: Storage, name: str, *fields: str) -> list[tuple]:
    return [
        tuple(row[field] for field in fields) for row in storage.read_table(f"{name}.parquet").to_pylist()
    ]


def make(storage: Storage, shard: str, recordings: str, refuses: tuple[str, ...] = (), **options) -> None:
    audio(storage, recordings, shard=shard, **options)
    assert ShardWorker(codes_job(storage.root, Ear(refuses)))(shard)["status"] in ("finished", "skipped")


def gather(storage: Storage, columns, shards, live=LIVE, attempts=None) -> None:
    """Into one file a table."""
    gathering.gather(storage, columns, shards, live, attempts)
    gathering.compact(storage, live)


@pytest.fixture
def storage(tmp_path) -> Storage:
    """Two shards with labels: s1 of a and b, s2 of c."""
    storage = Storage(tmp_path)
    make(storage, "s1", "ab", run={"wall_s": 0.2, "busy_s": 0.1, "host": "h", "started": 5.0})
    make(storage, "s2", "c")
    return storage


def test_each_table_has_its_rows(storage):
    gather(storage, BOTH, ["s1", "s2"], LIVE)
    keys = [
        ("s1", "a-00000"),
        ("s1", "a-00001"),
        ("s1", "b-00000"),
        ("s1", "b-00001"),
        ("s2", "c-00000"),
        ("s2", "c-00001"),
    ]
    assert sorted(rows(storage, "index", "column", "shard", "key")) == [
        (name, *key) for name in BOTH for key in keys
    ]
    assert rows(storage, "segments", "shard", "key") == keys
    assert set(rows(storage, "segments", "columns", "samples")) == {("audio codes-ear", SEGMENT)}
    assert rows(storage, "shards", "shard", "column", "kept", "segments", "samples") == [
        (shard, name, kept, 2 * kept, 2 * kept * SEGMENT)
        for shard, kept in (("s1", 2), ("s2", 1))
        for name in BOTH
    ]
    assert histograms.read(storage, "codes-ear")[1] == 2
    index = storage.read_table("index.parquet")
    assert index.schema.names == TABLES["index"].names
    places = {(r["shard"], r["key"]): r["offset"] for r in index.to_pylist() if r["column"] == "audio"}
    assert places["s2", "c-00001"] == column.read_index(storage, "audio", "s2")["offset"].to_pylist()[1]


def test_segments_hold_the_statistics_of_every_column_beside_their_key(storage):
    make(storage, "s3", "abd", refuses=("b",))
    gather(storage, BOTH, ["s3"], LIVE)
    table = storage.read_table("segments.parquet")
    own = column.read_index(storage, "codes-ear", "s3")["key"].to_pylist()
    stats = {
        row["key"]: row
        for row in storage.read_table(records.file("codes-ear", "s3", "stats.parquet")).to_pylist()
    }
    new = next(
        name for name in stats["a-00000"] if name not in ("key", "recording", "start", "samples", "frames")
    )
    assert "loud" in table.column_names and len(own) == 4
    assert [(r["key"], r["loud"], r[new]) for r in table.to_pylist()] == [
        (key, 1.0, stats[key][new] if key in stats else None)
        for key in (f"{r}-0000{i}" for r in "abd" for i in (0, 1))
    ]


def test_shards_rows_are_what_their_records_say(storage):
    make(storage, "s3", "abd", refuses=("b", "d"))
    gather(storage, BOTH, ["s1", "s3"], LIVE, {("audio", "s1"): 3})
    table = {(r["shard"], r["column"]): r for r in storage.read_table("shards.parquet").to_pylist()}
    first, third, record = (
        table["s1", "audio"],
        table["s3", "codes-ear"],
        records.read(storage, "audio", "s1"),
    )
    hours = 4 * SEGMENT / 24_000 / 3600
    wanted = {
        "inputs": 2,
        "kept": 2,
        "rejected": 0,
        "frames": 40,
        "bytes": record.bytes,
        "sha256": record.sha256,
        "device": "cpu",
        "host": "h",
        "started": 5.0,
        "wall_s": 0.2,
        "busy_s": 0.1,
        "attempts": 3,
        "rejects": "{}",
        "facts": "{}",
        "slowest": None,
    }
    assert {k: first[k] for k in wanted} == wanted
    assert first["hours"] == pytest.approx(hours) and first["times_real_time"] == pytest.approx(
        hours * 3600 / 0.2
    )
    assert (third["inputs"], third["kept"], third["rejected"], third["attempts"]) == (3, 1, 2, None)
    assert json.loads(third["rejects"]) == {"too loud": 2} and json.loads(third["facts"])["codebooks"] == 1
    assert table["s3", "audio"]["times_real_time"] is None and table["s3", "audio"]["wall_s"] is None


def test_a_shard_that_was_made_anew_replaces_its_rows_and_no_others(storage):
    gather(storage, BOTH, ["s1", "s2"], LIVE)
    before = {name: storage.read_table(f"{name}.parquet").to_pylist() for name in TABLES}
    make(storage, "s1", "ad", seed=1)
    gather(storage, BOTH, ["s1"], LIVE)
    assert sorted(rows(storage, "segments", "key")) == [(f"{r}-0000{i}",) for r in "acd" for i in (0, 1)]
    assert sorted(rows(storage, "shards", "shard", "column")) == [
        (shard, name) for shard in ("s1", "s2") for name in BOTH
    ]
    assert len(rows(storage, "index", "key")) == 12
    for name in TABLES:
        after = storage.read_table(f"{name}.parquet").to_pylist()
        assert [r for r in after if r["shard"] == "s2"] == [r for r in before[name] if r["shard"] == "s2"]


def test_a_new_column_leaves_the_rows_of_others_in_index_and_shards(storage):
    gather(storage, ("audio",), ["s1", "s2"], LIVE)
    gather(storage, ("codes-ear",), ["s1"], LIVE)
    assert sorted(rows(storage, "shards", "shard", "column")) == [
        ("s1", "audio"),
        ("s1", "codes-ear"),
        ("s2", "audio"),
    ]
    assert {row for row in rows(storage, "index", "shard", "column")} == {
        ("s1", "audio"),
        ("s1", "codes-ear"),
        ("s2", "audio"),
    }
    assert gathering.gathered(storage, ("audio",)) == {"s1", "s2"} and gathering.gathered(storage, BOTH) == {
        "s1"
    }
    assert gathering.gathered(storage, ()) == set()
    # One row a segment: of s1 those of the columns gathered last.
    assert set(rows(storage, "segments", "shard", "columns")) == {("s1", "codes-ear"), ("s2", "audio")}
    own, none = (list(gathering.segments(storage, names, ["key"])) for names in (("audio",), BOTH))
    assert pa.concat_tables(own).to_pylist() == [{"key": "c-00000"}, {"key": "c-00001"}]
    assert sum(table.num_rows for table in none) == 0


def test_recordings_that_are_no_longer_live_leave_index_and_segments(storage):
    gather(storage, BOTH, ["s1", "s2"], LIVE)
    gather(storage, BOTH, [], pa.array(["b"]))
    assert rows(storage, "segments", "key") == [("b-00000",), ("b-00001",)]
    assert set(rows(storage, "index", "recording")) == {("b",)}
    assert len(rows(storage, "shards", "shard")) == 4


def test_statistics_that_came_later_are_null_in_older_rows(storage):
    gather(storage, BOTH, ["s1"], LIVE)
    make(storage, "s2", "c", stats={"loud": 2.0, "bright": 7.0})
    gather(storage, BOTH, ["s2"], LIVE)
    assert rows(storage, "segments", "key", "loud", "bright") == [
        ("a-00000", 1.0, None),
        ("a-00001", 1.0, None),
        ("b-00000", 1.0, None),
        ("b-00001", 1.0, None),
        ("c-00000", 2.0, 7.0),
        ("c-00001", 2.0, 7.0),
    ]
    make(storage, "s1", "a", stats={"quiet": 3.0})
    gather(storage, BOTH, ["s1"], LIVE)
    assert sorted(rows(storage, "segments", "key", "bright")) == [
        ("a-00000", None),
        ("a-00001", None),
        ("c-00000", 7.0),
        ("c-00001", 7.0),
    ]
    assert [quiet for (quiet,) in sorted(rows(storage, "segments", "quiet"), key=str)] == [
        3.0,
        3.0,
        None,
        None,
    ]


def test_nothing_to_gather_gives_empty_tables(tmp_path):
    storage = Storage(tmp_path)
    assert gathering.gathered(storage, BOTH) == set()
    gather(storage, BOTH, [], LIVE)
    for name, schema in TABLES.items():
        table = storage.read_table(f"{name}.parquet")
        assert table.num_rows == 0 and table.schema.names == schema.names
    assert gathering.gathered(storage, BOTH) == set()


def plan(*live: tuple[str, str]) -> pa.Table:
    return pa.table({"recording": [r for r, _ in live], "shard": [s for _, s in live]})


def test_what_segments_lack_and_what_they_hold_too_much_is_seen(storage):
    whole = plan(("a", "s1"), ("b", "s1"), ("c", "s2"))
    none = pa.array([], pa.string())
    assert gathering.ungathered(storage, BOTH, whole, none) == (set(), False)
    gather(storage, BOTH, ["s1", "s2"], LIVE)
    assert gathering.ungathered(storage, BOTH, whole, none) == (set(), False)
    more = plan(("a", "s1"), ("b", "s1"), ("c", "s2"), ("x", "s3"), ("y", "s2"))
    assert gathering.ungathered(storage, BOTH, more, none) == ({"s2", "s3"}, False)
    assert gathering.ungathered(storage, BOTH, more, pa.array(["y"])) == ({"s3"}, False)
    assert gathering.ungathered(storage, BOTH, more, pa.array(["x", "y"])) == (set(), False)
    assert gathering.ungathered(storage, BOTH, plan(("a", "s1"), ("c", "s2")), none) == (set(), True)
    assert gathering.ungathered(storage, ("audio",), whole, none) == ({"s1", "s2"}, False)


def test_rejections_are_read_from_the_records_that_say_any(storage):
    assert gathering.rejected_rows(storage, BOTH, {"s1"}, lambda shard, recording: True).num_rows == 0
    make(storage, "s3", "abcd", refuses=("b",), live=3)
    make(storage, "s4", "ab", refuses=("b",))
    gather(storage, BOTH, ["s1", "s2", "s3", "s4"], LIVE)

    def found(columns=BOTH, done=("s1", "s2", "s3"), wanted=lambda shard, recording: True) -> list[tuple]:
        table = gathering.rejected_rows(storage, columns, set(done), wanted)
        assert table.schema == gathering.REJECTED
        return sorted(tuple(row.values()) for row in table.to_pylist())

    decode, codes = ("decode", "s3", "d", "d.wav", "odd"), ("codes", "s3", "b", "", "too loud")
    assert found() == [codes, decode]
    assert found(("audio",)) == [decode] and found(("codes-ear",)) == [codes]
    assert found(done=("s4",)) == [("codes", "s4", "b", "", "too loud")] and found(done=()) == []
    assert found(wanted=lambda shard, recording: (shard, recording) == ("s3", "d")) == [decode]


def test_segments_begin_with_where_they_belong(storage):
    gather(storage, BOTH, ["s1"], LIVE)
    names = storage.read_table("segments.parquet").column_names
    assert names[:4] == ["columns", "shard", "key", "recording"] and len(set(names)) == len(names)


def test_no_label_column_takes_the_place_of_an_audio_that_is_damaged(storage):
    storage.delete(records.file("audio", "s1", "tar"))
    assert list(audit.damaged(storage, "s1", (*BOTH, "codes-ear"))) == ["audio"]


@pytest.mark.parametrize("rows_held, groups", [(2, [4, 4]), (4, [6, 2]), (8, [8])])
def test_parts_share_row_groups_of_more_than_a_number_of_rows(storage, monkeypatch, rows_held, groups):
    make(storage, "s3", "d")
    monkeypatch.setattr(gathering, "ROW_GROUP", rows_held)
    monkeypatch.setattr(gathering, "PART", 1)
    gather(storage, BOTH, ["s1", "s2", "s3"], LIVE)
    written = pq.read_metadata(storage.path("segments.parquet"))
    assert [written.row_group(n).num_rows for n in range(written.num_row_groups)] == groups


def test_a_table_is_whole_before_it_has_its_name(storage, monkeypatch):
    publish, seen = Storage._publish, []

    def whole(self, path, name):
        seen.append((name, pq.read_metadata(path).num_rows > 0))
        publish(self, path, name)

    monkeypatch.setattr(Storage, "_publish", whole)
    gathering.gather(storage, BOTH, ["s1"], LIVE)
    [part] = parts.added(storage)
    assert seen == [(parts.file(name, part), True) for name in ("index", "segments", "sums", "shards")]
    seen.clear()
    gathering.compact(storage, LIVE)
    assert seen == [(f"{name}.parquet", True) for name in ("shards", "index", "segments", "sums")]


def test_the_source_of_each_recording_is_found_again(tmp_path, monkeypatch):
    rng, rows = np.random.default_rng(0), []
    known = {f"{i:016x}": f"{i:064x}" for i in rng.permutation(50_000).tolist()}
    for recording, digest in known.items():
        rows += [{"recording": recording, "source_sha256": digest}] * int(rng.integers(1, 4))
    rows += [{"recording": "f" * 16, "source_sha256": None}]
    storage = Storage(tmp_path)
    assert gathering.sources(storage)("f" * 16) is None
    storage.write_table("segments.parquet", pa.Table.from_pylist(rows))
    find = gathering.sources(storage)
    assert all(find(recording) == digest for recording, digest in known.items())
    assert [find(other) for other in ("f" * 16, "0" * 15, "e" * 16, "")] == [None] * 4
    later = [{"recording": "0" * 16, "source_sha256": "e" * 64}, rows[-1]]
    storage.write_table(parts.file("segments", "1"), pa.Table.from_pylist(later))
    storage.write_table(parts.file("shards", "1"), pa.table({"shard": ["s"], "column": ["audio"]}))
    assert gathering.sources(storage)("0" * 16) == "e" * 64, "the last one holds"
