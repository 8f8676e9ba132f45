"""What a scan has read outlives it: a kill costs seconds, and no byte of the catalog."""

import os
import shutil
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label.scan import parts as module
from stages.label.scan import scan as scanning
from stages.label.scan.parts import FOLDER, PART, Parts
from stages.shards.storage import Storage
from tests.chaos.processes import wait
from tests.conftest import ROOT
from tests.object_store import served

PROGRAM = """
import sys
from stages.label.scan import parts, probe_pool
from stages.label.scan.scan import scan
from stages.shards.storage import Storage
parts.PART_ROWS = 20
probe_pool.PROBE = "overtone_waiting_probe:probe"
music, out = sys.argv[1:]
scan([music], None, out + "/catalog.parquet", workers=2, parts=parts.Parts(Storage(out)))
"""
WAITING = """
import time
from stages.label.scan.probing import probe as real
def probe(path):
    while path.endswith(b"/250.wav"): time.sleep(1)
    return real(path)
"""


@pytest.fixture
def out(tmp_path, monkeypatch) -> Storage:
    """Rows are kept one by one."""
    monkeypatch.setattr(module, "PART_ROWS", 1)
    return Storage(tmp_path / "out")


def forget(scans) -> None:
    """A scan that was killed has written no catalog."""
    scans.catalog.unlink()


def test_after_a_kill_only_the_rest_is_read(scans, tmp_path):
    for number in range(300):
        scans.write(f"{number:03}.wav", number, seconds=0.01)
    (tmp_path / "overtone_waiting_probe.py").write_text(WAITING)
    out = Storage(tmp_path / "out")
    command = [sys.executable, "-c", PROGRAM, str(scans.music), out.root]
    killed = subprocess.Popen(command, cwd=ROOT)
    assert wait(lambda: len(out.names(FOLDER)) == 294 // 20, killed), "every file but the last six of a chunk"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not out.exists("catalog.parquet")
    assert scans(parts=Parts(out)).kept == 300
    assert len(scans.probed) == 300 - 280 and "250.wav" in scans.probed
    resumed = scans.catalog.read_bytes()
    forget(scans)
    scans()
    assert len(scans.probed) == 300 and scans.catalog.read_bytes() == resumed


def test_what_changed_since_is_read_again(scans, out):
    paths = [scans.write(f"{name}.wav", seed) for seed, name in enumerate(("same", "touched", "grown"))]
    scans(parts=Parts(out))
    forget(scans)
    os.utime(paths[1], ns=(5, 5))
    time_ns = paths[2].stat().st_mtime_ns
    scans.write("grown.wav", 9, seconds=0.2)
    os.utime(paths[2], ns=(time_ns, time_ns))
    scans(parts=Parts(out))
    assert scans.probed == ["grown.wav", "touched.wav"]
    resumed = scans.catalog.read_bytes()
    forget(scans)
    scans()
    assert scans.catalog.read_bytes() == resumed


def test_rejections_are_kept_but_for_what_may_mend_or_was_asked_for(scans, out):
    (scans.music / "bad.mp3").write_bytes(b"bad" * 100)
    code = "def probe(path):\n    return {'reason': 'unreadable: x' if b'gone' in path else 'crashed'}\n"
    (scans.music.parent / "overtone_odd_probe.py").write_text(code)
    for seed, name in enumerate(("crashed", "gone")):
        scans.write(f"{name}.wav", seed)
    scans(parts=Parts(out), probe="overtone_odd_probe:probe")
    forget(scans)
    for retry, again in (
        (None, []),
        ("rash", ["bad.mp3", "crashed.wav"]),
        ("all", ["bad.mp3", "crashed.wav"]),
    ):
        before = sorted(out.names(FOLDER))
        assert scans(parts=Parts(out, writes=False), retry_rejected=retry).kept == 1 + bool(again)
        assert scans.probed == [*again, "gone.wav"] and sorted(out.names(FOLDER)) == before
        forget(scans)
    scans(parts=Parts(out), retry_rejected="rash")
    forget(scans)
    scans(parts=Parts(out))
    assert scans.probed == [] and scans.row("crashed.wav")["status"] == "kept", "what was readable once is"


def test_whole_files_are_not_hashed_twice(scans, out, monkeypatch):
    path = scans.write("a.wav", seconds=60)
    shutil.copy2(path, scans.music / "b.wav")
    assert scans(parts=Parts(out)).duplicates == 1
    resumed = scans.catalog.read_bytes()
    forget(scans)
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "full_sha256", lambda path: pytest.fail("read"))
        scans(parts=Parts(out))
    assert scans.probed == [] and scans.catalog.read_bytes() == resumed
    (out.local(FOLDER) / "hashed twice.parquet").write_bytes(
        max(out.local(FOLDER).iterdir(), key=lambda part: part.name).read_bytes()
    )
    os.utime(path, ns=(5, 5))
    forget(scans)
    assert scans(parts=Parts(out)).duplicates == 1 and scans.probed == ["a.wav"]


def test_a_damaged_or_foreign_part_is_as_good_as_none(scans, out):
    scans.write("a.wav")
    scans(parts=Parts(out))
    [name] = out.names(FOLDER)
    table = out.read_table(f"{FOLDER}/{name}")
    newer = PART.append(pa.field("loudness", pa.float64())).with_metadata({"overtone.scanning": "2"})
    other = pa.Table.from_pylist(table.to_pylist(), newer)
    for damage in (
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: pq.write_table(other, path),
        lambda path: pq.write_table(table.replace_schema_metadata({"overtone.scanning": "2"}), path),
    ):
        damage(out.local(f"{FOLDER}/{name}"))
        forget(scans)
        assert scans(parts=Parts(out, writes=False)).kept == 1
        assert scans.probed == ["a.wav"]


def test_a_part_is_written_every_few_seconds(scans, tmp_path, monkeypatch):
    now, out = [100.0], Storage(tmp_path / "out")
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    parts = Parts(out)
    for seconds, written in ((1, 0), (3, 0), (6, 1), (9, 1), (14, 2)):
        now[0] = 100.0 + seconds
        parts.add({"path_bytes": b"/%d" % seconds, "size": 1, "mtime_ns": 1})
        assert len(out.names(FOLDER)) == written, seconds
    rows = pq.read_table(parts.joined(tmp_path / "joined"))
    assert rows["path_bytes"].to_pylist() == [b"/1", b"/3", b"/6", b"/9", b"/14"]
    parts.clear()
    assert out.names("") == set()


def test_on_an_object_store(scans, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 1)
    for seed in range(12):
        scans.write(f"{seed}.wav", seed)
    with served("scanning-parts"):
        out = Storage("s3://scanning-parts/out")
        scans(parts=Parts(out))
        forget(scans)
        assert len(out.names(FOLDER)) == 12
        scans(parts=Parts(out))
        assert scans.probed == []
        Parts(out).clear()
        assert out.names(FOLDER) == set()
