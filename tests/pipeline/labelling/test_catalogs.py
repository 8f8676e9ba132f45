"""Scan and plan of an OUT: what goes on after a kill, and what is left alone."""

import os
import shutil
from pathlib import Path

import pytest

from cluster import plain
from pipeline.labelling.catalogs import CATALOG, PLAN, REJECTED, Catalogs
from pipeline.labelling.dry_run import describe
from pipeline.labelling.progress import Progress
from stages.label import recipe as recipes
from stages.label.scan import parts
from stages.label.scan.parts import FOLDER, Parts
from stages.shards.storage import Storage
from tests.conftest import ROOT
from tests.object_store import Faults, served

TABLES = (CATALOG, PLAN, REJECTED)
QUICKSTART = ROOT / "examples" / "quickstart"


@pytest.fixture
def music(tmp_path) -> Path:
    folder = tmp_path / "music"
    folder.mkdir()
    for name in ("stg0.ogg", "stg4.ogg"):
        shutil.copy2(QUICKSTART / name, folder)
    (folder / "bad.mp3").write_bytes(b"bad" * 100)
    return folder


def configured(music: Path, out: str) -> recipes.Config:
    settings = [f"run.audio={music}", f"run.out={out}", "run.scan_workers=1"]
    return recipes.load(str(ROOT / "configs" / "labels" / "mel_rvq.yaml"), settings)


def tables(music: Path, out: Storage) -> None:
    """As a run makes them."""
    catalogs = Catalogs(out, configured(music, out.root), Progress(out), plain)
    catalogs.scan_and_plan()
    catalogs.write_rejected(())


def versions(out: Storage) -> list[tuple[int, int]]:
    return [(info.st_ino, info.st_mtime_ns) for info in (out.local(name).stat() for name in TABLES)]


def test_what_did_not_change_is_left_alone(music, tmp_path):
    out = Storage(tmp_path / "out")
    tables(music, out)
    before = versions(out)
    tables(music, out)
    assert versions(out) == before
    (music / "torn.mp3").write_bytes(b"torn" * 100)
    tables(music, out)
    catalog, plan, rejected = (a != b for a, b in zip(versions(out), before, strict=True))
    assert (catalog, plan, rejected) == (True, False, True)
    shutil.copy2(QUICKSTART / "stg1.ogg", music)
    before = versions(out)
    tables(music, out)
    catalog, plan, rejected = (a != b for a, b in zip(versions(out), before, strict=True))
    assert (catalog, plan, rejected) == (True, True, False)


def test_on_an_object_store_nothing_is_put(music):
    faults, written = Faults(), []
    faults.before = lambda method, path, port: (
        written.append(path) if method != "GET" and method != "HEAD" else None
    )
    with served("catalogs", faults=faults):
        out = Storage("s3://catalogs/out")
        tables(music, out)
        assert sorted(written) == sorted(f"/catalogs/out/{name}" for name in TABLES)
        written.clear()
        tables(music, out)
        assert written == []
        (music / "torn.mp3").write_bytes(b"torn" * 100)
        tables(music, out)
        assert sorted(written) == [f"/catalogs/out/{name}" for name in (CATALOG, REJECTED)]


def test_parts_of_a_scan_that_was_killed_are_read_and_then_removed(music, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_ROWS", 1)
    out = Storage(tmp_path / "out")
    config = configured(music, out.root)
    catalogs = Catalogs(out, config, Progress(out), plain)
    catalogs._scan(None, tmp_path / "lost.parquet", None, Parts(out))  # as far as it came
    kept = sorted((path.name, path.stat().st_mtime_ns) for path in out.local(FOLDER).iterdir())
    assert len(kept) == 3
    monkeypatch.setattr("stages.label.scan.probe_pool._Worker", None)  # nothing is left to be probed
    before = sorted(os.listdir(out.root))
    assert "found       3 = 2 readable + 1 rejected" in describe(config, plain=True)
    assert sorted(os.listdir(out.root)) == before, "a dry run writes nothing"
    assert kept == sorted((path.name, path.stat().st_mtime_ns) for path in out.local(FOLDER).iterdir())
    catalogs.scan_and_plan()
    assert catalogs.scanned.kept == 2 and not out.names(FOLDER) and out.exists(PLAN)
    assert not out.local(FOLDER).exists()
