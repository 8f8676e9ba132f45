"""catalog: the two tables' readers, and a writer whose files are whole and repeat."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stages.shards import catalog
from stages.shards.catalog import CATALOG, PLAN, write_parquet
from stages.shards.storage import Storage


def row(order: int, shard: str, tombstone: str | None = None) -> dict:
    values = {
        "recording": f"r{order}",
        "shard": shard,
        "order": order,
        "attempt": 0,
        "path": "a",
        "path_bytes": b"a",
    }
    values |= {"size": 1, "mtime_ns": 1, "quick": "q", "sha256": None, "duration_s": 1.0, "split": "train"}
    return values | {"tombstone": tombstone}


@pytest.fixture
def plan(tmp_path) -> pa.Table:
    rows = [row(0, "sb"), row(1, "sb", "edited"), row(2, "sa"), row(5, "sc", "vanished")]
    write_parquet(tmp_path / "plan.parquet", PLAN, [pa.RecordBatch.from_pylist(rows, schema=PLAN)])
    return catalog.read_plan(tmp_path / "plan.parquet")


def test_shards_keep_planning_order(plan):
    assert list(catalog.shard_slices(plan)) == ["sb", "sa", "sc"]
    assert list(catalog.shard_slices(catalog.live(plan))) == ["sb", "sa"]
    assert list(catalog.shard_slices(PLAN.empty_table())) == []
    assert catalog.shard_slices(plan) == {"sb": (0, 2), "sa": (2, 1), "sc": (3, 1)}


def test_planned_rows_and_tombstones(plan):
    slices = {shard: plan.slice(*place) for shard, place in catalog.shard_slices(plan).items()}
    assert slices["sb"]["recording"].to_pylist() == ["r0", "r1"]
    assert slices["sb"]["tombstone"].to_pylist()[1] == "edited"
    assert {shard: rows["order"].to_pylist() for shard, rows in slices.items()} == {
        "sb": [0, 1],
        "sa": [2],
        "sc": [5],
    }
    dead = plan.filter(pc.is_valid(plan["tombstone"]))["recording"]
    assert dead.to_pylist() == ["r1", "r5"] and "sx" not in slices


def test_only_wanted_columns_are_read(plan, tmp_path):
    assert catalog.read_plan(tmp_path / "plan.parquet", columns=["shard"]).column_names == ["shard"]


def test_another_file_is_refused_with_its_remedy(plan, tmp_path):
    with pytest.raises(ValueError, match="catalog .*plan.parquet has format none"):
        catalog.read_catalog(tmp_path / "plan.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="torn.parquet.*; restore it from a copy"):
        catalog.read_plan(tmp_path / "torn.parquet")
    with pytest.raises(ValueError, match="torn.parquet.*; move it away"):
        catalog.read_catalog(tmp_path / "torn.parquet")
    with pytest.raises(ValueError, match="absent.parquet"):
        catalog.read_plan(tmp_path / "absent.parquet")


def test_bytes_do_not_show_how_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "ROW_GROUP", 10)
    rows = [row(i, "s") for i in range(25)]
    files = []
    for step in (1, 7, 25):
        batches = [pa.RecordBatch.from_pylist(rows[i : i + step], schema=PLAN) for i in range(0, 25, step)]
        write_parquet(tmp_path / "a.parquet", PLAN, batches)
        files.append((tmp_path / "a.parquet").read_bytes())
    assert files[0] == files[1] == files[2]
    assert catalog.read_plan(tmp_path / "a.parquet")["order"].to_pylist() == list(range(25))


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, CATALOG, [])
    before = path.read_bytes()

    def batches():
        yield pa.RecordBatch.from_pylist([], schema=CATALOG)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_parquet(path, CATALOG, batches())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_a_shards_live_recordings_come_by_id(tmp_path):
    rows = [row(1, "sa"), row(3, "sb"), row(2, "sb", "edited"), row(0, "sb")]
    write_parquet(tmp_path / "plan.parquet", PLAN, [pa.RecordBatch.from_pylist(rows, schema=PLAN)])
    assert [p["recording"] for p in catalog.read_shard(Storage(tmp_path), "sb")] == ["r0", "r3"]
    assert catalog.read_shard(Storage(tmp_path), "sx") == []
    assert catalog.read_shard(Storage(tmp_path), "sa")[0] == row(1, "sa")


def test_rows_of_a_shard_must_be_neighbours():
    table = pa.Table.from_pylist([row(0, "sa"), row(1, "sb"), row(2, "sa")], schema=PLAN)
    with pytest.raises(AssertionError, match="must be neighbours"):
        catalog.shard_slices(table)
    assert catalog.shard_slices(pa.concat_tables([table.slice(0, 1), table.slice(1, 1)])) == {
        "sa": (0, 1),
        "sb": (1, 1),
    }


def test_a_table_of_another_version_is_refused_and_none_is_told_to_be_deleted(plan, tmp_path):
    """Whoever deletes a plan labels everything anew."""
    catalog.check_schema(tmp_path / "plan.parquet", PLAN, "plan")
    for version, problem in (
        (
            b"2",
            "has format 2; this version reads 1: use the version of overtone that wrote it, or a newer one",
        ),
        (b"1", "its columns are not those of its format 1; restore it from a copy"),
    ):
        newer = PLAN.append(pa.field("invented", pa.int64())).with_metadata({b"overtone.plan": version})
        pq.write_table(newer.empty_table(), tmp_path / "newer.parquet")
        with pytest.raises(ValueError, match=f"plan .*newer.parquet:? {problem}") as error:
            catalog.read_plan(tmp_path / "newer.parquet")
        assert "delete" not in str(error.value)


def test_a_catalog_is_written_and_read_with_its_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "ROW_GROUP", 10)
    write_parquet(
        tmp_path / "c.parquet",
        CATALOG,
        [pa.RecordBatch.from_pylist([{"path": f"{i}"} for i in range(20)], schema=CATALOG)],
    )
    assert pq.ParquetFile(tmp_path / "c.parquet").num_row_groups == 2
    assert catalog.read_catalog(tmp_path / "c.parquet", ["path"])["path"].to_pylist() == [
        str(i) for i in range(20)
    ]


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_parquet(tmp_path / "none" / "c.parquet", CATALOG, [])


def test_a_catalog_of_the_first_version_is_read(tmp_path):
    old = pa.schema([field for field in CATALOG if field.name != "duration_from"])
    pq.write_table(
        pa.Table.from_pylist([{"path": "a", "duration_s": 2.0}], schema=old), tmp_path / "c.parquet"
    )
    (row,) = catalog.read_catalog(tmp_path / "c.parquet").to_pylist()
    assert (row["path"], row["duration_s"], row["duration_from"]) == ("a", 2.0, None)
    assert catalog.read_catalog(tmp_path / "c.parquet").schema.names == CATALOG.names


@pytest.mark.parametrize(
    "duration_s, size, most_h, seconds",
    [
        (60.0, 1_000_000, 12, 60.0), (0.0, 160_000, 12, 10.0), (1e9, 1_250, 12, 100.0),
        (1e9, 10**9, 2, 7200.0),
        (3.0, 1, 12, 0.08),
    ],
)  # fmt: skip
def test_a_recording_weighs_no_more_than_its_bytes_can_hold(duration_s, size, most_h, seconds):
    plan = pa.table({"duration_s": [duration_s], "size": [size]})
    assert catalog.likely_seconds(plan, most_h).tolist() == pytest.approx([seconds])


def test_the_plan_is_read_once_for_all_shards(tmp_path):
    rows = [row(1, "sa"), row(3, "sb"), row(2, "sb", "edited"), row(0, "sb")]
    write_parquet(tmp_path / "plan.parquet", PLAN, [pa.RecordBatch.from_pylist(rows, schema=PLAN)])
    planned = catalog.ShardRows(tmp_path / "plan.parquet")
    for shard in ("sa", "sb"):
        whole = catalog.read_shard(Storage(tmp_path), shard)
        assert planned(shard) == [{name: one[name] for name in planned(shard)[0]} for one in whole]
        assert set(planned(shard)[0]) >= {"recording", "path", "path_bytes", "size", "mtime_ns", "quick"}
