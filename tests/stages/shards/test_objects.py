"""Objects of a real S3 server: whole or as before, whatever becomes of who writes them."""

import hashlib
import io
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.shards import objects, scratch
from stages.shards.storage import Storage
from tests.conftest import ROOT
from tests.object_store import Gate, Listed, served

OLD = b"what was there before"
WRITER = """
import signal, sys
import numpy as np, pyarrow as pa
from stages.shards.storage import Storage

def fail(*_):
    raise RuntimeError("interrupted")

signal.signal(signal.SIGUSR1, fail)
out, kind = Storage(sys.argv[1]), sys.argv[2]
noise = np.random.default_rng(0).bytes(12 << 20)
print("ready", flush=True)
sys.stdin.readline()
if kind == "bytes":
    out.write("object", noise)
elif kind == "table":
    out.write_table("object", pa.table({"a": np.frombuffer(noise, np.uint8)}))
else:  # a tar: of one request or of many parts
    with out.attempt("object") as path:
        path.write_bytes(noise * (5 if kind == "parts" else 1))
"""


@pytest.fixture(scope="module")
def store():
    with served("labels") as environment:
        gate = Gate(environment["AWS_ENDPOINT_URL"])
        with pytest.MonkeyPatch.context() as patch:
            yield gate, environment | {"AWS_ENDPOINT_URL": gate.address}, patch
        gate.close()


@pytest.fixture
def out(store, request) -> Storage:
    return Storage(f"s3://labels/{request.node.name.translate(str.maketrans('[]', '--'))}")


def is_new(data: bytes, kind: str) -> bool:
    noise = np.random.default_rng(0).bytes(12 << 20)
    if kind == "table":
        return pq.read_table(io.BytesIO(data))["a"].to_numpy().tobytes() == noise
    return data == noise * (5 if kind == "parts" else 1)


def multipart(out: Storage) -> int:
    """Unfinished uploads; they are ended."""
    return objects.abort_uploads(out.base)


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT", "USR1"])
@pytest.mark.parametrize("kind", ["bytes", "table", "tar", "parts"])
def test_an_interrupted_upload_leaves_the_old_object_or_the_new_one(store, out, tmp_path, kind, how):
    gate, environment, _ = store
    out.write("object", OLD)
    code = [sys.executable, "-c", WRITER, out.root, kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = environment | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": ""}
    writer = subprocess.Popen(code, cwd=ROOT, env=environment, **pipes)
    try:
        assert writer.stdout.readline() == "ready\n"
        gate.hold_after(20 << 20 if kind == "parts" else 1 << 20)
        writer.stdin.write("go\n")
        writer.stdin.flush()
        assert gate.held.wait(60), "nothing was uploaded"
        assert out.read("object") == OLD
        writer.send_signal(getattr(signal, f"SIG{how}"))
        if how in ("KILL", "TERM"):
            writer.wait(60)
        gate.release()
        _, said = writer.communicate(timeout=60)
    finally:
        writer.kill()
    assert writer.returncode != 0, said
    seen = out.read("object")
    killed = how in ("KILL", "TERM")
    assert seen == OLD or not killed and is_new(seen, kind), (len(seen), said)
    assert multipart(out) == (kind == "parts" and killed) and multipart(out) == 0
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == (2 if killed else 0)  # the lock and what was to be uploaded
    scratch.sweep(tmp_path / next(tmp_path.iterdir()).name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_conditional_writes_change_what_they_expect_and_nothing_else(store, out):
    where = f"{out.base}/lock"
    first = objects.put(where, b"1", IfNoneMatch="*")
    assert objects.get(where) == (b"1", first)
    with pytest.raises(objects.Changed, match="s3://labels"):
        objects.put(where, b"2", IfNoneMatch="*")
    second = objects.put(where, b"2", IfMatch=first)
    with pytest.raises(objects.Changed):
        objects.put(where, b"3", IfMatch=first)
    assert objects.get(where) == (b"2", second)
    objects.delete(where)
    objects.delete(where)
    with pytest.raises(FileNotFoundError, match="lock: .*NoSuchKey"):
        objects.get(where)


def test_the_stores_errors_are_those_of_a_file(store, out, tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x")
    for act in (
        lambda: objects.upload("no-bucket/f", tmp_path / "f"),
        lambda: objects.put("no-bucket/f", b""),
    ):
        with pytest.raises(FileNotFoundError, match="^s3://no-bucket/f: .*NoSuchBucket"):
            act()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    objects._opened.cache_clear()
    for act in (
        lambda: objects.upload(f"{out.base}/f", tmp_path / "f"),
        lambda: objects.get(f"{out.base}/f"),
    ):
        with pytest.raises(PermissionError, match="Unable to locate credentials"):
            act()
    objects._opened.cache_clear()


def test_every_request_carries_a_checksum_that_the_store_keeps(store, out, tmp_path):
    (tmp_path / "f").write_bytes(bytes(objects.PART + 1))
    objects.upload(f"{out.base}/parts", tmp_path / "f")
    objects.put(f"{out.base}/one", b"x")
    for name in ("parts", "one"):
        bucket, _, key = out.path(name).partition("/")
        about = objects._client().head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        assert about["ChecksumCRC32"], about


def test_unfinished_uploads_of_another_folder_are_left_alone(store, out):
    bucket, _, key = out.path("x").partition("/")
    client, other = objects._client(), Storage(f"{out.root}2")
    client.create_multipart_upload(Bucket=bucket, Key=key)
    client.create_multipart_upload(Bucket=bucket, Key=other.path("x").partition("/")[2])
    assert multipart(out) == 1 and multipart(out) == 0 and multipart(other) == 1


@pytest.mark.parametrize(
    ("environment", "seen"),
    [
        ({}, (None, None)),
        ({"AWS_REGION": "eu-1", "AWS_DEFAULT_REGION": "us-2"}, (None, "eu-1")),
        ({"AWS_DEFAULT_REGION": "us-2"}, (None, "us-2")),
        ({"AWS_ENDPOINT_URL": "http://h:1"}, ("http://h:1", "us-east-1")),
        ({"AWS_ENDPOINT_URL_S3": "https://s", "AWS_ENDPOINT_URL": "http://h:1"}, ("https://s", "us-east-1")),
    ],
)
def test_a_store_is_reached_by_the_usual_variables(monkeypatch, environment, seen):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert objects.reached() == seen
    config = objects._client().meta.config
    assert config.s3.get("addressing_style") == ("path" if seen[0] else None)
    assert (config.connect_timeout, config.read_timeout) == (10, 60)
    assert config.retries["total_max_attempts"] == 8 and config.retries["mode"] == "standard"


@pytest.mark.parametrize("other", [(), ("a.json", "s5/", "s5x/in/it", "s4", "sg.tar", "z~.json")])
def test_names_of_a_folder_that_takes_many_pages(other):
    """Some of them in folders, or beside the letters that threads begin at."""
    hashes = [f"s{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()[:12]}" for n in range(1500)]
    own = [f"{name}.{kind}" for name in hashes for kind in ("tar", "json")]
    keys = sorted([f"out/a/{name}" for name in (*own, *other, "")] + ["out/a0", "out/b/x"])
    with served("pages", around=Listed(keys, most=50).before("out/a/")):
        expected = {*own, *(name.partition("/")[0] for name in other)}
        assert objects.names("pages/out/a") == expected
        assert Storage("s3://pages/out").names("a") == expected
        assert Storage("s3://pages/out").names("b") == set() == Storage("s3://none/out").names("b")


def test_times_are_whole_milliseconds_in_lists_and_headers(out):
    out.write("folder/object", b"x")
    bucket, _, key = out.path("folder/object").partition("/")
    [(address, size, mtime_ns)] = objects.page(out.path("folder/")).keys
    assert (address, size) == (out.path("folder/object"), 1)
    of_header = objects._client().head_object(Bucket=bucket, Key=key)["LastModified"].timestamp()
    assert int(of_header) == mtime_ns // 10**9 and mtime_ns % 10**6 == 0
    assert objects._moment("2026-01-02T03:04:05.678Z").timestamp() == 1767323045.678
    assert objects._ns(objects._moment("2026-01-02T03:04:05.678999Z")) == 1767323045_678_000_000


def test_a_bucket_that_is_not_there_is_no_empty_page(out):
    with pytest.raises(FileNotFoundError, match="s3://nowhere/"):
        objects.page("nowhere/a/")
