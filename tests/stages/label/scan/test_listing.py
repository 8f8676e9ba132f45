"""listing: which files there are under folders, in lists and on S3, and what is wrong with a root."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileType

from stages.label.scan import listing, walking
from stages.label.scan.listing import Found, open_root
from stages.label.scan.probing import s3
from stages.label.scan.scan import scan
from stages.shards.storage import s3_filesystem
from tests.conftest import ROOT
from tests.object_store import Listed, served

QUICKSTART = ROOT / "examples" / "quickstart"


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
def forgotten():
    """No client of an earlier server."""
    s3.cache_clear()
    yield
    s3.cache_clear()


@pytest.fixture
def bucket(forgotten):
    with served("corpus"):
        yield s3()


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


class TestListsAsPeopleMakeThem:
    @pytest.mark.parametrize(
        "data",
        [
            "music/é.wav\r\nmusic/b.wav\r\n".encode("utf-8-sig"), "music/é.wav\nmusic/b.wav".encode("utf-16"),
            "\ufeffmusic/é.wav\r\nmusic/b.wav\r\n".encode("utf-16-be"), "music/é.wav\nmusic/b.wav\n".encode(),
        ],
    )  # fmt: skip
    def test_any_mark_and_line_end_is_read(self, scans, tmp_path, data):
        for seed, name in enumerate(("é.wav", "b.wav")):
            scans.write(name, seed)
        (tmp_path / "list.txt").write_bytes(data)
        summary = scans(tmp_path / "list.txt")
        assert (summary.found, summary.kept) == (2, 2)

    def test_home_and_file_urls_are_paths(self, scans, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        paths = [scans.write(name, seed) for seed, name in enumerate(("a b.wav", "%41.wav", "c.wav"))]
        url = f"file://{tmp_path}/music/a%20b.wav"
        local = f"FILE://localhost{tmp_path}/music/%2541.wav"
        (tmp_path / "list.txt").write_text(f"{url}\n{local}\n~/music/c.wav\n")
        assert scans(tmp_path / "list.txt").kept == len(paths)

    @pytest.mark.parametrize(
        "data, line, words",
        [
            (
                b"a.wav\nhttps://example.org/b.mp3\n",
                2,
                "is neither a path, file:// nor s3://; download it first",
            ),
            (b"a.wav\n\nfile://nas/music/b.mp3\n", 3, "is on another machine"),
            ("a.wav\nb.wav\n".encode("utf-16-le"), 1, "holds a zero byte: is the list UTF-16"),
            (b"\xff\xfea\x00\n\x00b", 2, "is not utf-16, which its first bytes promise"),
        ],
    )
    def test_what_is_no_path_is_refused_by_list_and_line(self, tmp_path, data, line, words):
        (tmp_path / "list.txt").write_bytes(data)
        with pytest.raises(ValueError, match="audio root") as error:
            scan([str(tmp_path / "list.txt")], None, tmp_path / "c.parquet")
        assert f"line {line}" in str(error.value) and words in str(error.value)
        assert str(tmp_path / "list.txt") in str(error.value)


class TestSidecars:
    BESIDE = ("._a.mp3", ".DS_Store", "b.mp3.part", "c.wav.crdownload", "d.PART")
    FOLDERS = (".AppleDouble", "@eaDir", ".Trashes", ".Trash-1000", "$RECYCLE.BIN", "#recycle", "__MACOSX")

    @pytest.fixture
    def library(self, scans):
        for seed, name in enumerate(("a.wav", ".hidden.wav", "Partita.part/b.wav", "x.mp3/c.wav")):
            scans.write(name, seed)
        for name in self.BESIDE:
            (scans.music / name).write_bytes(b"\0\5\x16\7" * 9)
        for seed, name in enumerate(self.FOLDERS, 10):
            scans.write(f"deep/{name}/x.wav", seed)
        return scans

    def test_they_are_counted_by_kind_and_never_rejected(self, library):
        summary = library()
        assert (summary.found, summary.kept, summary.rejected, summary.ignored) == (4, 4, 0, 0)
        assert summary.sidecars == {
            "*.part": 2, ".trash*": 2, "._*": 1, ".ds_store": 1, "*.crdownload": 1, ".appledouble": 1,
            "@eadir": 1, "$recycle.bin": 1, "#recycle": 1, "__macosx": 1,
        }  # fmt: skip

    def test_they_are_files_like_others_on_request(self, library):
        summary = library(include_hidden=True)
        assert (summary.kept, summary.rejected, summary.sidecars) == (4 + len(self.FOLDERS), 1, {})
        assert summary.endings == {".part": 2, ".crdownload": 1, "no ending": 1}

    def test_on_s3_too(self, scans, bucket, tmp_path):
        data = scans.write("a.wav", 1).read_bytes()
        for key in ("m/a.wav", "m/@eaDir/a.wav", "m/x/._b.wav", "m/c.wav.part", "m/d.txt", "m/x.mp3/e.wav"):
            with bucket.open_output_stream(f"corpus/{key}") as stream:
                stream.write(data if key == "m/a.wav" else data[:-2] + key[-6:-4].encode())
        summary = scans("s3://corpus/m")
        assert (summary.kept, summary.endings) == (2, {".txt": 1})
        assert summary.sidecars == {"@eadir": 1, "._*": 1, "*.part": 1}


@pytest.mark.parametrize(
    "ending", ["mkv", "mov", "m4v", "weba", "ogv", "3gp", "mpga", "avi", "m4r", "aif", "caf", "wma", "MKV"]
)
def test_sound_under_other_endings_is_a_candidate(scans, ending):
    scans.write(f"a.{ending}", 1)
    scans.write(f"b.{ending} ", 2)
    assert scans().kept == 2, "the content tells what it is"


def test_a_folder_that_changes_while_it_is_scanned(scans, monkeypatch):
    for seed in range(6):
        scans.write(f"{seed}.wav", seed)
    look = listing._look

    def changing(path, name):
        if name == b"1.wav":
            (scans.music / "2.wav").unlink()
            (scans.music / "new.wav").write_bytes((scans.music / "3.wav").read_bytes())
            (scans.music / "4.wav").write_bytes(b"")
        return look(path, name)

    monkeypatch.setattr(listing, "_look", changing)
    summary = scans()
    assert (summary.found, summary.kept, summary.rejected) == (5, 4, 1)
    monkeypatch.setattr(listing, "_look", look)
    assert (scans().found, scans().duplicates) == (6, 1)


@pytest.mark.slow
def test_fifty_thousand_files_in_one_folder(scans):
    first = scans.write("first.wav", 1).read_bytes()
    for number in range(49_999):
        (scans.music / f"{number}.wav").write_bytes(first[:-8] + number.to_bytes(8, "little"))
    summary = scans(workers=2)
    assert (summary.found, summary.kept) == (50_000, 50_000)


@pytest.fixture
def nested(scans):
    """Folders in folders, with links up, across and to nowhere, sidecars, and one that cannot be listed."""
    for number in range(40):
        scans.write(f"{number % 4}/{number % 7}/{number}.wav", number, seconds=0.01)
        (scans.music / f"{number % 4}/{number % 7}/{number}.txt").touch()
    scans.write("1/@eaDir/x.wav", 50)
    (scans.music / "2/._x.mp3").touch()
    (scans.music / "0/up").symlink_to(scans.music)
    (scans.music / "3/across").symlink_to(scans.music / "2")
    (scans.music / "3/nowhere.wav").symlink_to("nowhere")
    (scans.music / "locked").mkdir()
    return scans


def reached(folder: bytes, above: tuple = ()) -> Iterator[bytes]:
    """The music below a folder, one after the other."""
    if folder.endswith((b"/locked", b"/@eaDir")) or os.path.realpath(folder) in above:
        return
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            yield from reached(path, (*above, os.path.realpath(folder)))
        elif name.endswith(b".wav") and os.path.exists(path):
            yield path


def test_threads_and_pieces_of_folders_change_no_byte(nested, monkeypatch):
    def listed(folder):
        if isinstance(folder, bytes) and folder.endswith(b"/locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", listed)
    catalogs, summaries = set(), []
    for threads, chunk in ((1, 1000), (16, 1000), (16, 1), (16, 3), (3, 2)):
        monkeypatch.setattr(walking, "THREADS", threads)
        monkeypatch.setattr(listing, "CHUNK", chunk)
        summaries.append(nested())
        catalogs.add(nested.catalog.read_bytes())
        nested.catalog.unlink()
    assert len(catalogs) == 1 and all(repr(one) == repr(summaries[0]) for one in summaries)
    assert {row["path_bytes"] for row in nested.rows if row["status"] != "rejected"} == set(
        reached(bytes(nested.music))
    )
    assert nested.row("locked")["reason"] == "unreadable: Permission denied"
    assert summaries[0].sidecars == {"._*": 2, "@eadir": 1}


def test_a_folder_that_fails_midway_keeps_what_was_read(scans, monkeypatch):
    for seed in range(6):
        scans.write(f"{seed}.wav", seed)

    def failing():
        yield from sorted(scandir(bytes(scans.music)), key=lambda entry: entry.name)[:4]
        raise OSError(5, "Input/output error")

    scandir, music = os.scandir, bytes(scans.music)
    monkeypatch.setattr(os, "scandir", lambda folder: failing() if folder == music else scandir(folder))
    monkeypatch.setattr(listing, "CHUNK", 2)
    assert (scans().kept, scans.summary.rejected) == (4, 1)
    assert scans.row("music")["reason"] == "unreadable: Input/output error"


KEYS = sorted(
    [f"m/{folder}/{number:04}.flac" for folder in "abc" for number in range(1100)]
    + [f"m/many/{number:04}/ü +%.wav" for number in range(1100)]
    + [f"m/{number:04}.mp3" for number in range(2500)]
    + ["m/a/", "m/deep/er/and/deep er/x.ogg", "m/cover.jpg", "m!/y.wav", "other/x.wav"]
)


@pytest.mark.parametrize("root", ["s3://b/m", "s3://b", "s3://b/m/many", "s3://b/m/deep"])
def test_a_store_is_listed_as_arrow_lists_it(root, forgotten):
    """Whose listing holds all keys at once."""
    store = Listed(KEYS)
    with store.served():
        found = list(open_root(root)())
        infos = s3_filesystem().get_file_info(FileSelector(root[5:], recursive=True))
        infos = [info for info in infos if info.type == FileType.File and not info.path.endswith(".jpg")]
    files = [one for one in found if isinstance(one, Found)]
    assert sorted((f.path_bytes.decode(), f.size, f.mtime_ns, f.problem) for f in files) == sorted(
        ("s3://" + i.path, i.size, i.mtime_ns, None) for i in infos
    )
    assert all(f.path_bytes == root.encode() + b"/" + f.name_bytes for f in files)
    assert len(found) - len(files) == sum(root in f"s3://b/{key}" and key.endswith("jpg") for key in KEYS)


def test_more_folders_than_a_page_holds_are_not_asked_for_one_by_one(forgotten):
    store = Listed([key for key in KEYS if "/many/" in key])
    with store.served():
        assert len(list(open_root("s3://b/m/many")())) == 1100
    assert store.requests <= 2 + 1 + 2, "is it there, its folders, and two pages"


def test_folders_of_a_store_are_listed_at_once(forgotten):
    store = Listed(
        [f"m/{folder:02}/{number}.wav" for folder in range(walking.THREADS) for number in range(3)]
    )
    together = threading.Barrier(walking.THREADS, timeout=30)
    with store.served():
        listed = open_root("s3://b/m")
        at_once = iter([None])  # the request for the folders comes alone
        store.arrived = lambda: next(at_once, None) is None and store.requests > seen + 1 and together.wait()
        seen = store.requests
        assert len(list(listed())) == 3 * walking.THREADS


MEMORY = """
from pathlib import Path
from stages.label.scan.listing import open_root
def peak():  # of getrusage that of the parent is a part
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
listed = open_root("s3://b/flat")()
next(listed)
before = peak()
count = 1 + sum(1 for _ in listed)
print(count, peak() - before)
"""


def test_a_flat_prefix_is_listed_in_bounded_memory():
    """Its keys alone would be 50 bytes each and an object around them."""
    with Listed([f"flat/{'x' * 40}{number:07}.flac" for number in range(100_000)]).served() as environment:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
    count, grown_kib = map(int, done.stdout.split())
    assert count == 100_000 and grown_kib < 16 << 10, "as much as some pages"
