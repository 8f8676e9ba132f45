"""The database for what memory does not hold."""

from stages.shards.tables import connect


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
