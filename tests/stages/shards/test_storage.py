import pickle

import pyarrow as pa
import pytest

from stages.shards.storage import ATTEMPT, Storage


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/b.bin", b"old")
    with pytest.raises(RuntimeError), storage.attempt("a/b.bin") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert storage.read("a/b.bin") == b"old"
    assert storage.names("a") == {"b.bin"}
    with storage.attempt("a/b.bin") as path:
        path.write_bytes(b"new")
        assert storage.read("a/b.bin") == b"old"
    assert storage.read("a/b.bin") == b"new"


def test_attempts_of_a_dead_run_are_swept_and_never_listed(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/real", b"")
    (tmp_path / "a" / f"{ATTEMPT}1234-real").write_bytes(b"half")
    assert storage.names("a") == {"real"}
    assert storage.sweep("a") == 1
    assert storage.sweep("a") == 0
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["real"]


def test_absent_things(tmp_path):
    storage = Storage(tmp_path / "none")
    assert storage.names("a") == set() and not storage.exists("a/b")
    storage.delete("a/b")
    with pytest.raises(FileNotFoundError):
        storage.size("a/b")


def test_tables_and_random_access(tmp_path):
    storage = pickle.loads(pickle.dumps(Storage(tmp_path)))
    storage.write_table("t.parquet", pa.table({"a": [1, 2], "b": ["x", "y"]}))
    assert storage.read_table("t.parquet", ["b"]).to_pydict() == {"b": ["x", "y"]}
    storage.write("f", b"0123456789")
    with storage.open("f") as f:
        assert f.read_at(3, 4) == b"456"
    with storage.fetched("f") as path:
        assert path.read_bytes() == b"0123456789"


def test_other_places_are_refused():
    with pytest.raises(ValueError, match="gs://x"):
        Storage("gs://x/y")


def test_free_space_of_a_place_that_does_not_exist_yet(tmp_path):
    assert Storage(tmp_path / "a" / "b").free_bytes() > 0
