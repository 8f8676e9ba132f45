"""scan: every file gets one row and one fate; a rescan reads only what is new; ids and duplicates."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from stages.label.probe import MIB, full_sha256, recording_id, s3
from stages.label.scan import scan
from stages.shards.catalog import read_catalog
from tests.object_store import served

QUICKSTART = Path(__file__).resolve().parents[3] / "examples" / "quickstart"

COUNTING = """
from stages.label.probe import probe as real
def probe(path):
    with open({log!r}, "ab") as log:
        log.write(path.hex().encode() + b"\\n")
    return real(path)
"""


class Scans:
    """Scans of one folder, each after the other; knows which files the last one probed."""

    def __init__(self, tmp_path: Path):
        self.music = tmp_path / "music"
        self.music.mkdir()
        self.catalog = tmp_path / "catalog.parquet"
        self.log = tmp_path / "log"
        self.known = {}
        (tmp_path / "overtone_counting_probe.py").write_text(COUNTING.format(log=str(self.log)))

    def __call__(self, *roots, **options):
        self.log.write_bytes(b"")
        options = {"workers": 2, "probe": "overtone_counting_probe:probe", **options}
        places = [str(r) for r in roots] or [str(self.music)]
        self.summary = scan(places, self.catalog, self.catalog, **options)
        s = self.summary
        assert s.found == s.kept + s.rejected + s.duplicates
        self.rows = read_catalog(self.catalog).to_pylist()
        assert len(self.rows) == s.found + s.excluded
        kept = [r["recording"] for r in self.rows if r["status"] == "kept"]
        assert len(set(kept)) == len(kept), "one id, one recording"
        assert self.rows == sorted(self.rows, key=lambda r: r["path_bytes"])
        return s

    @property
    def probed(self) -> list[str]:
        paths = [bytes.fromhex(line) for line in self.log.read_text().split()]
        return sorted(os.fsdecode(os.path.basename(p)) for p in paths)

    def row(self, name: str | bytes) -> dict:
        (row,) = [r for r in self.rows if r["path_bytes"].endswith(b"/" + os.fsencode(name))]
        return row

    def write(self, name: str | bytes, seed: int = 0, seconds: float = 0.1, folder: Path | None = None) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder or self.music), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * 44_100)).astype(np.int16)
        with open(path, "wb") as file:
            soundfile.write(file, wave, 44_100, format="WAV")
        return path


@pytest.fixture
def scans(tmp_path, monkeypatch) -> Scans:
    monkeypatch.syspath_prepend(tmp_path)
    return Scans(tmp_path)


def edit_middle(path: Path, value: bytes, mtime_ns: int) -> None:
    """Change bytes that the quick hash does not see."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(value)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def test_real_music(scans):
    shutil.copytree(QUICKSTART, scans.music, dirs_exist_ok=True)
    summary = scans()
    assert (summary.found, summary.kept, summary.ignored) == (7, 7, 1)  # the licence is no audio
    assert summary.hours == pytest.approx(0.173, abs=0.01)
    assert scans.row("stg0.ogg")["name_bytes"] == b"stg0.ogg"


def test_odd_files_cost_themselves(scans):
    music = scans.music
    fine = ["a.b.c.wav", " two  spaces .wav", "new\nline.wav", b"b\xff\xfe.wav", "UPPER.WAV", "deep/er/x.wav"]
    for seed, name in enumerate(fine):
        scans.write(name, seed)
    shutil.copy(QUICKSTART / "stg4.ogg", music / "really ogg.wav")
    (music / "empty.mp3").touch()
    (music / "garbage.flac").write_bytes(b"garbage\n" * 1000)
    (music / "truncated.ogg").write_bytes((QUICKSTART / "stg4.ogg").read_bytes()[:300])
    (music / "._x.mp3").write_bytes(b"\x00\x05\x16\x07" * 20)
    (music / "x.mp3").mkdir()
    scans.write("x.mp3/inside.wav", 10)
    (music / "dangling.mp3").symlink_to("nowhere")
    (music / "itself.mp3").symlink_to("itself.mp3")
    os.mkfifo(music / "pipe.wav")
    (music / "loop").symlink_to(music)
    (music / "cover.jpg").touch()
    (music / "broken link.txt").symlink_to("nowhere")
    summary = scans()
    assert (summary.kept, summary.rejected, summary.duplicates, summary.ignored) == (8, 8, 0, 2)
    for name in [*fine, "really ogg.wav", "x.mp3/inside.wav"]:
        assert scans.row(name)["status"] == "kept", name
    assert scans.row(b"b\xff\xfe.wav")["path"].endswith("/b\\xff\\xfe.wav")
    reasons = {
        "empty.mp3": "empty file",
        "garbage.flac": "Invalid data found when processing input",
        "truncated.ogg": "End of file",
        "._x.mp3": "Invalid data found when processing input",
        "x.mp3": "is a directory, not a file",
        "dangling.mp3": "dangling link: No such file or directory",
        "itself.mp3": "dangling link: Too many levels of symbolic links",
        "pipe.wav": "is not a regular file",
    }
    assert {name: scans.row(name)["reason"] for name in reasons} == reasons


def test_a_rescan_reads_only_what_is_new_or_changed(scans):
    for seed in range(5):
        scans.write(f"{seed}.wav", seed)
    (scans.music / "bad.mp3").write_bytes(b"bad" * 100)
    scans()
    assert len(scans.probed) == 6
    before, ids = scans.catalog.read_bytes(), {r["path_bytes"]: r["recording"] for r in scans.rows}
    assert scans(workers=3).unchanged == 6
    assert scans.probed == []
    assert scans.catalog.read_bytes() == before, "the same bytes, however it came"
    scans.write("new.wav", 9)
    scans.write("3.wav", 33, seconds=0.2)
    scans()
    assert scans.probed == ["3.wav", "new.wav"]
    same = {r["path_bytes"] for r in scans.rows if ids.get(r["path_bytes"]) == r["recording"]}
    assert len(same) == 5
    (scans.music / "0.wav").unlink()
    assert scans().found == 6
    assert scans.probed == []


def test_an_unchanged_catalog_starts_no_process(scans, monkeypatch):
    scans.write("a.wav")
    scans()
    monkeypatch.setattr("stages.label.prober._Worker", None)
    assert scans().unchanged == 1


def test_rejected_are_retried_by_request(scans):
    (scans.music / "bad.mp3").write_bytes(b"bad" * 100)
    (scans.music / "torn.ogg").write_bytes((QUICKSTART / "stg4.ogg").read_bytes()[:300])
    scans.write("good.wav")
    scans()
    scans(retry_rejected="Invalid data")
    assert scans.probed == ["bad.mp3"]
    scans(retry_rejected="all")
    assert scans.probed == ["bad.mp3", "torn.ogg"]
    assert scans.row("good.wav")["status"] == "kept"


def test_what_could_not_be_read_is_tried_again(scans):
    scans.write("a.wav")
    code = "def probe(path):\n    return {'reason': 'unreadable: Input/output error'}\n"
    (scans.music.parent / "overtone_failing_probe.py").write_text(code)
    scans(probe="overtone_failing_probe:probe")
    assert scans.row("a.wav")["reason"] == "unreadable: Input/output error"
    assert scans().kept == 1
    assert scans.probed == ["a.wav"]


def test_a_crash_is_rejected_and_remembered(scans):
    for seed in range(3):
        scans.write(f"{seed}.wav", seed)
    code = "import os\nfrom stages.label.probe import probe as real\n"
    code += "def probe(path):\n    return real(path) if b'1.wav' not in path else os.kill(os.getpid(), 11)\n"
    (scans.music.parent / "overtone_crashing_probe.py").write_text(code)
    assert scans(probe="overtone_crashing_probe:probe").kept == 2
    assert scans.row("1.wav")["reason"] == "decoder crashed: signal 11"
    scans()
    assert scans.probed == []
    scans(retry_rejected="decoder crashed")
    assert scans.row("1.wav")["status"] == "kept"


def test_duplicates_are_confirmed_by_every_byte(scans):
    stem = scans.write("b stem.wav", seconds=60)
    assert stem.stat().st_size > 4 * MIB
    shutil.copy2(stem, scans.music / "a copy.wav")
    shutil.copy2(stem, scans.music / "c other stem.wav")
    edit_middle(scans.music / "c other stem.wav", b"other", 1)
    summary = scans()
    assert (summary.kept, summary.duplicates) == (2, 1)
    assert scans.row("c other stem.wav")["quick"] == scans.row("a copy.wav")["quick"]
    assert scans.row("b stem.wav")["duplicate_of"] == scans.row("a copy.wav")["recording"]
    assert scans.row("b stem.wav")["sha256"] == full_sha256(os.fsencode(stem))
    # An earlier name that comes later does not take over, and a vanished original is replaced.
    shutil.copy2(stem, scans.music / "0 copy.wav")
    scans()
    assert scans.row("0 copy.wav")["duplicate_of"] == scans.row("a copy.wav")["recording"]
    (scans.music / "a copy.wav").unlink()
    scans()
    assert scans.row("0 copy.wav")["status"] == "kept"
    assert scans.row("b stem.wav")["duplicate_of"] == scans.row("0 copy.wav")["recording"]


def test_an_edit_in_the_middle_is_a_new_recording(scans):
    path = scans.write("a.wav", seconds=60)
    twin = scans.write("twin.wav", seconds=60)  # gives both a sha256 in the catalog
    scans()
    first = scans.row("a.wav")["recording"]
    edit_middle(path, b"new words", 5)
    scans()
    second = scans.row("a.wav")["recording"]
    assert second != first
    assert scans.row("twin.wav")["status"] == "kept"
    os.utime(path, ns=(6, 6))  # touched only
    scans()
    assert scans.row("a.wav")["recording"] == second
    edit_middle(path, b"newer word", 7)
    scans()
    third = scans.row("a.wav")["recording"]
    assert third not in (first, second)
    # The old bytes come back: the first id again, where it is known whose it was.
    shutil.copy(twin, path)
    twin.unlink()
    os.utime(path, ns=(8, 8))
    scans(known_sha256={first: full_sha256(os.fsencode(path))})
    assert scans.row("a.wav")["recording"] == first


def test_an_edit_where_no_sha_was_taken(scans):
    path = scans.write("a.wav", seconds=60)
    old_sha = full_sha256(os.fsencode(path))
    scans()
    first = scans.row("a.wav")
    assert first["sha256"] is None
    saved = scans.catalog.read_bytes()
    edit_middle(path, b"new words", 5)
    scans()  # nobody knows what it was: it stays, and is known from now on
    assert scans.row("a.wav")["recording"] == first["recording"]
    assert scans.row("a.wav")["sha256"] == full_sha256(os.fsencode(path))
    scans.catalog.write_bytes(saved)
    scans(known_sha256={first["recording"]: old_sha}.get)  # the labels know
    assert scans.row("a.wav")["recording"] != first["recording"]
    # Forgotten by one scan (another root) and back: still not the bytes that were labelled.
    elsewhere = scans.write("b.wav", 1, folder=scans.music.parent / "else").parent
    scans(elsewhere)
    scans(known_sha256={first["recording"]: old_sha})
    assert scans.row("a.wav")["recording"] != first["recording"]


def test_ids_move_with_the_corpus(scans, tmp_path):
    for seed in range(3):
        scans.write(f"album/{seed}.wav", seed)
    scans()
    ids = {r["name_bytes"]: r["recording"] for r in scans.rows}
    assert ids[b"album/0.wav"] == recording_id(b"album/0.wav", scans.row("0.wav")["size"], scans.row("0.wav")["quick"])
    scans.music.rename(tmp_path / "mount")
    scans(tmp_path / "mount", known_sha256=dict.fromkeys(ids.values(), "not read when the mtime is the same"))
    assert {r["name_bytes"]: r["recording"] for r in scans.rows} == ids
    assert {r["sha256"] for r in scans.rows} == {None}
    scans(tmp_path / "mount" / "album")  # a path keeps its name, though its root be another
    assert {r["name_bytes"]: r["recording"] for r in scans.rows} == ids
    assert scans.probed == []


def test_one_name_in_two_roots(scans, tmp_path):
    one = scans.write("a.wav", seconds=60)
    two, three = tmp_path / "two", tmp_path / "three"
    for folder in (two, three):
        folder.mkdir()
        shutil.copy2(one, folder)
    edit_middle(two / "a.wav", b"other", 1)
    scans(scans.music, two, three, scans.music)
    assert scans.summary.found == 3
    by_folder = {Path(os.fsdecode(r["path_bytes"])).parent.name: r for r in scans.rows}
    assert [by_folder[f]["status"] for f in ("music", "three", "two")] == ["kept", "duplicate", "kept"]
    assert by_folder["music"]["recording"] != by_folder["two"]["recording"]
    base = recording_id(b"a.wav", by_folder["two"]["size"], by_folder["two"]["quick"])
    assert by_folder["music"]["recording"] == base
    ids = {r["path_bytes"]: r["recording"] for r in scans.rows}
    scans(two, scans.music, three)
    assert {r["path_bytes"]: r["recording"] for r in scans.rows} == ids


def test_exclude(scans):
    scans.write("live/deep/a.wav", 1)
    scans.write("studio/a.wav", 2)
    scans()
    ids = {r["path_bytes"]: r["recording"] for r in scans.rows}
    summary = scans(exclude=["live/*", "*.flac"])
    assert (summary.found, summary.kept, summary.excluded) == (1, 1, 1)
    assert scans.row("deep/a.wav")["status"] == "excluded"
    assert scans().excluded == 0
    assert {r["path_bytes"]: r["recording"] for r in scans.rows} == ids


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


@pytest.mark.parametrize("root", ["{}/absent", "{}/log.mp3", "gs://bucket/x", "{}/absent.txt", "{}/torn.parquet"])
def test_a_root_that_cannot_be_read_is_named(tmp_path, root):
    (tmp_path / "log.mp3").write_bytes(b"x")
    (tmp_path / "torn.parquet").write_bytes(b"x")
    root = root.format(tmp_path)
    with pytest.raises(ValueError, match="audio root") as error:
        scan([str(tmp_path), root], None, tmp_path / "c.parquet")
    assert root in str(error.value)
    assert not (tmp_path / "c.parquet").exists()


def test_impossible_values(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        scan([str(tmp_path)], None, tmp_path / "c.parquet", workers=0)
    with pytest.raises(ValueError, match="no audio roots"):
        scan([], None, tmp_path / "c.parquet")
    (tmp_path / "c.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="delete it"):
        scan([str(tmp_path)], tmp_path / "c.parquet", tmp_path / "c.parquet")


def test_an_empty_folder_and_progress(scans):
    assert dataclasses.asdict(scans()) == dict.fromkeys(
        ("found", "kept", "rejected", "duplicates", "ignored", "excluded", "unchanged", "hours"), 0
    )
    for seed in range(70):
        scans.write(f"{seed}.wav", seed)
    seen = []
    scans(progress=seen.append)
    assert seen[-1] == {"stage": "scan", "step": "probe", "done": 70, "total": 70, "rejected": 0}
    assert {"stage": "scan", "step": "list", "done": 70} in seen


@pytest.fixture
def bucket(monkeypatch):
    monkeypatch.setattr("stages.label.probe._s3", [])
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
