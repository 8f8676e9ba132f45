"""Recordings that are rejected after their first segments leave nothing in their shard."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from stages.label import audit
from stages.label import recipe as recipes
from stages.label.plan import plan
from stages.label.scan.scan import scan
from stages.label.shard import Job, ShardWorker
from stages.shards import catalog
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.stages.label.made import SHARD, Ear, audio, codes_job

NAME = "codes-ear"


def test_a_recording_that_a_teacher_refuses_late_leaves_nothing(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    rows = [
        ShardWorker(codes_job(tmp_path, Ear(refuses), name))(SHARD)
        for refuses, name in (((), "codes-all"), (("b",), NAME))
    ]
    assert [(row["kept"], row["rejected"]) for row in rows] == [(3, 0), (2, 1)]
    assert records.read(storage, NAME, SHARD).rejects == [
        {"recording": "b", "path": "", "reason": "too loud"}
    ]
    whole, part = members(tmp_path, "codes-all"), members(tmp_path, NAME)
    assert part == {name: data for name, data in whole.items() if not name.startswith("b")}
    assert not leftovers(storage, NAME, "b")
    assert not audit.damaged(storage, SHARD, ["audio", NAME])
    [total] = storage.read_table(records.file(NAME, SHARD, "sums.parquet"))["values"].to_pylist()
    assert sum(total) == records.read(storage, NAME, SHARD).frames


def members(out: Path, name: str) -> dict[str, bytes]:
    found = {}
    for path in sorted((out / "columns" / name).glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {m.name: tar.extractfile(m).read() for m in tar}
    return found


def leftovers(storage: Storage, name: str, recording: str) -> list[str]:
    """What the index, the statistics and the record's totals still hold of a recording."""
    shards = records.finished(storage, name)
    tables = {
        f"{shard}.{kind}": storage.read_table(records.file(name, shard, kind)).to_pylist()
        for shard in shards
        for kind in ("index.parquet", "stats.parquet")
    }
    return [
        f"{where}: {row['key']}"
        for where, rows in tables.items()
        for row in rows
        if row["recording"] == recording
    ]


def late_nan(path: Path, wave_N: np.ndarray) -> None:
    broken = wave_N.copy()
    broken[68 * 24_000] = np.nan
    soundfile.write(path, broken, 24_000, subtype="FLOAT")


def late_damage(path: Path, wave_N: np.ndarray) -> None:
    """A flac whose frames are broken from 60 to 66 of 70 s."""
    soundfile.write(path, wave_N, 24_000, format="FLAC")
    data = bytearray(path.read_bytes())
    first, last = (int(len(data) * second / 70) for second in (60, 66))
    data[first:last:200] = bytes(byte ^ 0x55 for byte in data[first:last:200])
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "spoil, suffix, reason", [(late_nan, "wav", "NaN"), (late_damage, "flac", "packets damaged")]
)
def test_a_file_that_is_rejected_near_its_end_leaves_nothing(tmp_path, excerpts, spoil, suffix, reason):
    """The shard is, byte for byte, that of the good files alone."""
    wave_N = np.random.default_rng(0).normal(0, 0.1, 70 * 24_000).astype(np.float32)
    tars = []
    for out in (tmp_path / "with", tmp_path / "without"):
        music = tmp_path / f"music {out.name}" / "music"
        music.mkdir(parents=True)
        for path in sorted(excerpts.iterdir())[:2]:
            (music / path.name).symlink_to(path)
        if out.name == "with":
            spoil(music / f"late.{suffix}", wave_N)
        out.mkdir()
        scan([str(music)], None, out / "catalog.parquet", workers=1)
        plan(None, out / "catalog.parquet", out / "plan.parquet", shard_minutes=60, validation_share=0.1)
        [shard] = catalog.shard_slices(catalog.read_plan(out / "plan.parquet"))
        recipe = recipes.Recipe()
        job = Job(recipe.decode, "audio", "audio", recipes.audio_recipe(recipe), str(out))
        worker = ShardWorker(job)
        row = worker(shard)
        assert worker(shard)["status"] == "skipped"
        worker.run.close()
        tars.append((out / "columns" / "audio" / f"{shard}.tar").read_bytes())
        if out.name == "with":
            [bad] = [
                r["recording"] for r in pq.read_table(out / "plan.parquet").to_pylist() if "late" in r["path"]
            ]
            assert (row["kept"], row["rejected"]) == (2, 1), row
            [reject] = records.read(Storage(out), "audio", shard).rejects
            assert (
                reject["recording"] == bad
                and reason in reject["reason"]
                and reject["path"].endswith(f"late.{suffix}")
            )
            assert not leftovers(Storage(out), "audio", bad) and not [
                name for name in members(out, "audio") if name.startswith(bad)
            ]
            assert not audit.damaged(Storage(out), shard, ["audio"])
            slowest = records.read(Storage(out), "audio", shard).run["slowest"]
            assert [s["recording"] for s in slowest if s["recording"] == bad], (
                "segments were made before it was rejected"
            )
    assert tars[0] == tars[1]
