"""The database for what memory does not hold."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.shards.storage import Storage
from stages.shards.tables import connect, lock


def test_it_spills_to_its_folder_beyond_its_memory(tmp_path):
    with connect(tmp_path / "spill", 0.5) as db:
        [settings] = db.sql(
            "select current_setting('memory_limit'), current_setting('temp_directory'), "
            "current_setting('threads'), current_setting('preserve_insertion_order')"
        ).fetchall()
        assert settings == ("476.8 MiB", str(tmp_path / "spill"), 2, False)
        db.sql("create table t as select range as n, hash(range) as h from range(3000000)")
        assert db.sql("select count(*), max(n) from (select n from t order by h)").fetchall() == [
            (3_000_000, 2_999_999)
        ]
    assert not (tmp_path / ":memory:").exists()


ATTACKS = [
    "1 IN (SELECT 1 FROM read_text('{secret}'))",
    "1 IN (SELECT 1 FROM read_csv('{secret}'))",
    "true; COPY (SELECT 1) TO '{secret}.copy'",
    "true; SET enable_external_access = true",
    "true; SET allowed_paths = ['{secret}']",
    "true; ATTACH '{secret}.db' AS other",
    "true; INSTALL httpfs",
    "true; LOAD httpfs",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_users_condition_reads_the_named_tables_and_nothing_else(tmp_path, attack):
    secret = tmp_path / "secret.csv"
    secret.write_text("x\n1\n")
    table = str(tmp_path / "it's.parquet")
    pq.write_table(pa.table({"a": [1, 2]}), table)
    Storage(tmp_path / "out").write("report/own.txt", b"2\n")
    with connect(tmp_path / "spill", 0.5) as db:
        db.execute("CREATE VIEW t AS FROM read_parquet('{}')".format(table.replace("'", "''")))
        lock(db, [table], Storage(tmp_path / "out"))
        assert db.execute("SELECT count(*) FROM t WHERE a > 1").fetchall() == [(1,)]
        own = f"a IN (SELECT column0 FROM read_csv('{tmp_path}/out/report/own.txt', header=false))"
        assert db.execute(f"SELECT count(*) FROM t WHERE {own}").fetchall() == [(1,)]
        with pytest.raises(duckdb.Error):
            db.execute(f"SELECT count(*) FROM t WHERE {attack.format(secret=secret)}").fetchall()
        assert {path.name for path in tmp_path.iterdir()} <= {"secret.csv", "it's.parquet", "spill", "out"}
        db.sql("create table big as select range as n, hash(range) as h from range(3000000)")
        assert len(db.sql("select n from big order by h limit 1").fetchall()) == 1  # it may still spill
