"""scan: every file gets one row and one fate; a rescan reads only what is new; ids and duplicates."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from stages.label.scan.probing import MIB, full_sha256, recording_id
from stages.label.scan.scan import scan
from tests.stages.label.scanned import edit_middle

QUICKSTART = Path(__file__).resolve().parents[4] / "examples" / "quickstart"


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
    assert (summary.kept, summary.rejected, summary.duplicates, summary.ignored) == (8, 6, 0, 2)
    assert (summary.endings, summary.sidecars) == ({".jpg": 1, ".txt": 1}, {"._*": 1})
    for name in [*fine, "really ogg.wav", "x.mp3/inside.wav"]:
        assert scans.row(name)["status"] == "kept", name
    assert scans.row(b"b\xff\xfe.wav")["path"].endswith("/b\\xff\\xfe.wav")
    reasons = {
        "empty.mp3": "empty file",
        "garbage.flac": "no audio that can be read: Invalid data found when processing input",
        "truncated.ogg": "no audio that can be read: End of file",
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
    monkeypatch.setattr("stages.label.scan.probe_pool._Worker", None)
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
    code = "import os\nfrom stages.label.scan.probing import probe as real\n"
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
    scans(known_sha256={first: full_sha256(os.fsencode(path))}.get)
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
    scans(known_sha256={first["recording"]: old_sha}.get)
    assert scans.row("a.wav")["recording"] != first["recording"]


def test_ids_move_with_the_corpus(scans, tmp_path):
    for seed in range(3):
        scans.write(f"album/{seed}.wav", seed)
    scans()
    ids = {r["name_bytes"]: r["recording"] for r in scans.rows}
    assert ids[b"album/0.wav"] == recording_id(
        b"album/0.wav", scans.row("0.wav")["size"], scans.row("0.wav")["quick"]
    )
    scans.music.rename(tmp_path / "mount")
    scans(
        tmp_path / "mount",
        known_sha256=dict.fromkeys(ids.values(), "not read when the mtime is the same").get,
    )
    assert {r["name_bytes"]: r["recording"] for r in scans.rows} == ids
    assert {r["sha256"] for r in scans.rows} == {None}
    scans(tmp_path / "mount" / "album")  # a path keeps its name, though its root be another
    assert {r["name_bytes"]: r["recording"] for r in scans.rows} == ids
    assert scans.probed == []


def test_a_moved_file_whose_middle_was_edited_is_another_recording(scans, tmp_path):
    for seed, name in enumerate(("edited", "touched", "moved")):
        scans.write(f"{name}.wav", seed, seconds=60)
    scans()
    first = {name: scans.row(f"{name}.wav") for name in ("edited", "touched", "moved")}
    labelled = {row["recording"]: full_sha256(row["path_bytes"]) for row in first.values()}
    scans.music.rename(tmp_path / "mount")
    edit_middle(tmp_path / "mount" / "edited.wav", b"new words", 5)
    os.utime(tmp_path / "mount" / "touched.wav", ns=(5, 5))
    for _ in range(2):
        scans(tmp_path / "mount", known_sha256=labelled.get)
        rows = {name: scans.row(f"{name}.wav") for name in first}
        assert {row["status"] for row in rows.values()} == {"kept"}
        assert [rows["edited"][same] == first["edited"][same] for same in ("size", "quick")] == [True, True]
        assert rows["edited"]["recording"] not in labelled
        assert rows["touched"]["recording"] == first["touched"]["recording"]
        assert rows["moved"]["recording"] == first["moved"]["recording"] and rows["moved"]["sha256"] is None
    (tmp_path / "mount" / "moved.wav").rename(tmp_path / "mount" / "renamed.wav")
    scans(tmp_path / "mount", known_sha256=labelled.get)
    assert scans.row("renamed.wav")["recording"] not in labelled, "the name is part of the id"


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


def test_impossible_values(tmp_path):
    with pytest.raises(ValueError, match="workers is 0"):
        scan([str(tmp_path)], None, tmp_path / "c.parquet", workers=0)
    with pytest.raises(ValueError, match="no audio roots"):
        scan([], None, tmp_path / "c.parquet")
    (tmp_path / "c.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match="move it away|has format none"):
        scan([str(tmp_path)], tmp_path / "c.parquet", tmp_path / "c.parquet")


def test_an_empty_folder_and_progress(scans):
    names = "found kept rejected duplicates ignored excluded unchanged hours estimated"
    nothing = dict.fromkeys(names.split(), 0) | {"endings": {}, "sidecars": {}}
    assert dataclasses.asdict(scans()) == nothing
    for seed in range(70):
        scans.write(f"{seed}.wav", seed)
    seen = []
    scans(progress=seen.append)
    assert seen[-1] == {
        "stage": "scan",
        "step": "probe",
        "done": 70,
        "total": 70,
        "rejected": 0,
        "last": True,
    }
    assert {"stage": "scan", "step": "list", "done": 70, "last": True} in seen
