"""listing: which files there are under folders, in lists and on S3, and what is wrong with a root."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label.scan.probing import s3
from stages.label.scan.scan import scan
from tests.object_store import served

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"


def test_lists(scans, tmp_path):
    scans.write("a.wav", 1)
    odd = scans.write(b"b\xff\n.weird", 2)
    scans.write("not listed.wav", 3)
    (tmp_path / "list.txt").write_bytes(b"music/a.wav\r\n\nmusic/absent.wav\n" + bytes(scans.music) + b"\n")
    scans(tmp_path / "list.txt")
    assert [(r["name_bytes"], r["status"], r["reason"]) for r in scans.rows] == [
        (b"music", "rejected", "is a directory, not a file"),
        (b"music/a.wav", "kept", None),
        (b"music/absent.wav", "rejected", "No such file or directory"),
    ]
    pq.write_table(pa.table({"path": pa.array([bytes(odd)], pa.binary())}), tmp_path / "list.parquet")
    assert scans(tmp_path / "list.parquet").kept == 1
    pq.write_table(pa.table({"path": ["music/a.wav"]}), tmp_path / "list.parquet")
    assert scans(tmp_path / "list.parquet").kept == 1
    pq.write_table(pa.table({"file": ["music/a.wav"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match="no column `path`"):
        scans(tmp_path / "list.parquet")


@pytest.mark.parametrize(
    "root", ["{}/absent", "{}/log.mp3", "gs://bucket/x", "{}/absent.txt", "{}/torn.parquet"]
)
def test_a_root_that_cannot_be_read_is_named(tmp_path, root):
    (tmp_path / "log.mp3").write_bytes(b"x")
    (tmp_path / "torn.parquet").write_bytes(b"x")
    root = root.format(tmp_path)
    with pytest.raises(ValueError, match="audio root") as error:
        scan([str(tmp_path), root], None, tmp_path / "c.parquet")
    assert root in str(error.value)
    assert not (tmp_path / "c.parquet").exists()


@pytest.fixture
def bucket():
    s3.cache_clear()
    with served("corpus"):
        yield s3()
    s3.cache_clear()


def test_s3(scans, bucket, tmp_path):
    def put(key: str, content: bytes) -> None:
        with bucket.open_output_stream(f"corpus/{key}") as stream:
            stream.write(content)

    track = (QUICKSTART / "stg4.ogg").read_bytes()
    put("music/album one/a.ogg", track)
    put("music/album one/copy.ogg", track)
    put("music/top.wav", scans.write("top.wav", seconds=60).read_bytes())
    put("music/bad.mp3", b"bad" * 100)
    put("music/empty.mp3", b"")
    put("music/cover.jpg", b"x")
    summary = scans("s3://corpus/music/")
    assert (summary.kept, summary.rejected, summary.duplicates, summary.ignored) == (2, 2, 1, 1)
    row = scans.row("album one/a.ogg")
    assert row["path_bytes"] == b"s3://corpus/music/album one/a.ogg"
    assert (row["name_bytes"], row["codec"], row["size"]) == (b"album one/a.ogg", "vorbis", len(track))
    assert row["duration_s"] == pytest.approx(61.9, abs=0.1)
    assert scans.row("top.wav")["duration_s"] == 60
    assert scans("s3://corpus/music").unchanged == 4
    assert scans.probed == []
    put("lists/list.txt", b"../music/top.wav\ns3://corpus/music/absent.wav\n")
    (tmp_path / "list.txt").write_text("s3://corpus/music/top.wav\ns3://corpus/music/absent.wav\n")
    for root in (tmp_path / "list.txt", "s3://corpus/lists/list.txt"):
        assert (scans(root).kept, scans.summary.rejected) == (1, 1)
    assert scans.row("absent.wav")["reason"] == "No such file or directory"
    with pytest.raises(ValueError, match="s3://corpus/absent"):
        scans("s3://corpus/absent")
    with pytest.raises(ValueError, match="s3://nobucket/x"):
        scans("s3://nobucket/x")
