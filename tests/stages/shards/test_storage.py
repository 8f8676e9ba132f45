import errno
import io
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from stages.shards import storage as storage_module
from stages.shards.storage import ATTEMPT, Storage, fetch_url, s3_filesystem, table_bytes
from tests.object_store import served


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


@pytest.fixture
def calls(monkeypatch):
    """(call, file names) of each fsync and rename, in order; `calls.fail` maps the number of one to an
    error."""

    class Calls(list):
        fail: dict[int, OSError] = {}

        def note(self, *what: str) -> None:
            self.append(what)
            if error := self.fail.get(len(self)):
                raise error

    noted, flush, rename = Calls(), os.fsync, os.replace

    def fsync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        noted.note(
            "fsync",
            place.name,
            place.read_bytes() if place.is_file() else sorted(p.name for p in place.iterdir()),
        )
        flush(handle)

    def replace(source, target) -> None:
        noted.note("rename", Path(source).name, Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return noted


def test_a_file_is_flushed_then_named_then_its_folder_is_flushed(tmp_path, calls):
    """Else a loss of power could leave a real name with half a file, or a record without its tar."""
    Storage(tmp_path).write("a/b.bin", b"whole")
    (first, attempt, data), second, third = calls
    assert (first, data) == ("fsync", b"whole") and attempt.startswith(ATTEMPT)
    assert second == ("rename", attempt, "b.bin")
    assert third == ("fsync", "a", ["b.bin"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", [1, 2, 3], ids=["fsync", "rename", "fsync of the folder"])
def test_an_error_of_the_disk_is_raised_and_leaves_no_half_file(tmp_path, calls, call, number):
    calls.fail = {call: OSError(number, os.strerror(number))}
    for write in (
        lambda s: s.write("a/b.bin", b"whole"),
        lambda s: s.write_table("a/b.bin", pa.table({"a": [1]})),
    ):
        calls.clear()
        with pytest.raises(OSError, match=os.strerror(number)) as raised:
            write(Storage(tmp_path))
        assert raised.value.errno == number
        assert [p.name for p in (tmp_path / "a").iterdir()] == (["b.bin"] if call == 3 else [])
        assert len(calls) == call


@pytest.mark.parametrize("call", [1, 2], ids=["fsync", "rename"])
def test_a_file_that_was_there_stays_when_its_successor_fails(tmp_path, calls, call):
    Storage(tmp_path).write("b.bin", b"old")
    calls.clear()
    calls.fail = {call: OSError(errno.EIO, "gone")}
    with pytest.raises(OSError, match="gone"):
        Storage(tmp_path).write("b.bin", b"new")
    assert Storage(tmp_path).read("b.bin") == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_an_error_while_writing_names_nothing(tmp_path, calls, monkeypatch, number):
    def half(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[:2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError) as raised:
        Storage(tmp_path).write("a/b.bin", b"whole")
    assert raised.value.errno == number and not calls and not list((tmp_path / "a").iterdir())


def test_a_flush_that_fails_closes_its_file(tmp_path, calls):
    before = len(os.listdir("/proc/self/fd"))
    calls.fail = {1: OSError(errno.EIO, "gone")}
    with pytest.raises(OSError):
        Storage(tmp_path).write("b.bin", b"new")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_standing_root_is_not_made_anew_but_folders_below_it_are(tmp_path):
    Storage(tmp_path, standing=True).write("a/b/c.bin", b"x")
    Storage(tmp_path, standing=True).write("a/b/d.bin", b"x")
    gone = Storage(tmp_path / "none", standing=True)
    with pytest.raises(FileNotFoundError):
        gone.write("a/b.bin", b"x")
    assert gone.is_gone() and not Storage(tmp_path).is_gone()
    assert pickle.loads(pickle.dumps(gone)).standing
    Storage(tmp_path / "none").write("a/b.bin", b"x")
    assert not gone.is_gone() and Storage(tmp_path / "none").names("a") == {"b.bin"}


@pytest.fixture(scope="module")
def store():
    with served("labels"):
        yield "s3://labels"


def test_an_object_appears_by_one_upload_and_leaves_no_local_file(store, tmp_path, monkeypatch):
    monkeypatch.setattr(storage_module.scratch, "folder", lambda: tmp_path)
    storage = Storage(f"{store}/one-upload")
    with storage.attempt("b.bin") as path:
        path.write_bytes(b"whole")
        assert not storage.exists("b.bin") and path.parent == tmp_path and path.name.startswith(ATTEMPT)
    assert storage.read("b.bin") == b"whole" and storage.names("") == {"b.bin"}
    assert not list(tmp_path.iterdir())
    storage.delete("b.bin")
    storage.delete("b.bin")
    assert not storage.exists("b.bin")


def test_an_object_is_fetched_to_a_copy_that_goes_with_the_block(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/b.bin", b"whole")
    storage.is_local = False
    with storage.fetched("a/b.bin") as path:
        assert path != tmp_path / "a/b.bin" and path.read_bytes() == b"whole"
    assert not path.exists()
    with Storage(tmp_path).fetched("a/b.bin") as path:
        assert path == tmp_path / "a/b.bin"
    assert storage.sweep("a") == 0 and storage.free_bytes() is None and not storage.is_gone()


def test_sizes_folders_and_absent_names(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/b.bin", b"12345")
    assert storage.size("a/b.bin") == 5 and storage.exists("a/b.bin") and not storage.exists("a")
    with pytest.raises(FileNotFoundError):
        storage.size("a")
    with pytest.raises(FileNotFoundError):
        storage.read("a/c.bin")
    storage.delete("a/b.bin")
    assert not storage.exists("a/b.bin") and storage.sweep("none") == 0
    assert storage.path("") == str(tmp_path) and storage.path("x/y") == f"{tmp_path}/x/y"
    assert Storage(f"{tmp_path}/").path("x") == f"{tmp_path}/x" and Storage("/").root == "/"


def test_a_table_in_memory_is_the_table(tmp_path):
    table = pa.table({"a": [1, 2]})
    assert pq.read_table(io.BytesIO(table_bytes(table))) == table


def test_an_address_is_fetched_by_folder_and_name(tmp_path):
    (tmp_path / "b c.wav").write_bytes(b"x")
    with fetch_url(f"{tmp_path}/b c.wav") as path:
        assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "environment, options",
    [
        ({}, {}),
        ({"AWS_REGION": "eu-1", "AWS_DEFAULT_REGION": "us-2"}, {"region": "eu-1"}),
        ({"AWS_DEFAULT_REGION": "us-2"}, {"region": "us-2"}),
        (
            {"AWS_ENDPOINT_URL": "http://h:1"},
            {"endpoint_override": "http://h:1", "scheme": "http", "region": "us-east-1"},
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "https://s", "AWS_ENDPOINT_URL": "http://h:1", "AWS_REGION": "eu-1"},
            {"endpoint_override": "https://s", "scheme": "https", "region": "eu-1"},
        ),
    ],
)
def test_an_object_store_is_reached_by_the_usual_variables(monkeypatch, environment, options):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pafs, "S3FileSystem", lambda **given: given)
    given = s3_filesystem()
    assert isinstance(given.pop("retry_strategy"), pafs.AwsStandardS3RetryStrategy)
    assert (given.pop("connect_timeout"), given.pop("request_timeout")) == (10, 60) and given == options
    storage = Storage("s3://bucket/prefix/")
    assert (
        storage.fs["connect_timeout"] == 10
        and storage.path("a/b") == "bucket/prefix/a/b"
        and not storage.is_local
    )
