"""A worker of one stage: what comes next is read while the present is computed, also from an object store;
bytes stay the same; CPU is counted."""

import contextlib
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from stages.label import recipe as recipes
from stages.label.codes import Codes
from stages.label.plan import plan
from stages.label.scan.scan import scan
from stages.label.shard import Job, ShardWorker
from stages.shards import catalog, column, objects
from stages.shards import record as records
from stages.shards.fetching import OneAhead
from stages.shards.storage import Storage
from tests.object_store import SlowStore

PATIENCE_S = 60.0  # until a test that hangs fails


@pytest.fixture
def out(tmp_path, excerpts) -> Path:
    """An OUT with a plan of one shard of two recordings."""
    out, music = tmp_path / "out", tmp_path / "music"
    out.mkdir()
    music.mkdir()
    for path in sorted(excerpts.iterdir())[:2]:
        (music / path.name).symlink_to(path)
    scan([str(music)], None, out / "catalog.parquet", workers=1)
    plan(None, out / "catalog.parquet", out / "plan.parquet", shard_minutes=60, validation_share=0.1)
    return out


def shard_of(out: Path) -> str:
    [shard] = catalog.shard_slices(catalog.read_plan(out / "plan.parquet"))
    return shard


def decode_job(out: Path, **options) -> Job:
    recipe = recipes.Recipe()
    return Job(recipe.decode, "audio", "audio", recipes.audio_recipe(recipe), str(out), options=options)


@dataclass(frozen=True)
class Patient:
    """Labels each recording by its first sample; the first recording only once `first` returned."""

    name = "patient"
    version = 1
    codebooks = 1
    codebook_size = 65_536
    first: object = lambda: None

    def open(self, weights, device, threads):
        began = []

        def label(wave):
            sound_N = wave.read(0, wave.samples)
            if not began:
                began.append(wave.recording)
                self.first()
            yield np.full((wave.samples // 320, 1), np.uint16(32_768 * (1 + sound_N[len(sound_N) // 2])))

        return label


def test_busy_time_counts_the_decoder(out):
    before = {child.pid for child in psutil.Process().children()}
    shard = shard_of(out)
    worker = ShardWorker(decode_job(out))
    row = worker(shard)
    [decoder] = [child for child in psutil.Process().children() if child.pid not in before]
    decoder_s = sum(decoder.cpu_times()[:2])
    record = records.read(Storage(out), "audio", shard)
    assert (
        decoder_s > 0.1 and record.run["busy_s"] >= decoder_s - 0.05 and row["busy_s"] >= record.run["busy_s"]
    ), (row, decoder_s)


def remote(monkeypatch, worker: ShardWorker, store: SlowStore) -> None:
    """Its reads are those of a slow store; what it writes is in the folder all the same."""
    worker.storage.is_local, worker.storage.fs = False, store
    monkeypatch.setattr(objects, "delete", lambda address: Path(address).unlink(missing_ok=True))
    monkeypatch.setattr(objects, "upload", lambda address, path: shutil.copyfile(path, address))


def test_the_next_recording_is_read_while_one_is_computed(out, monkeypatch):
    shard = shard_of(out)
    assert ShardWorker(decode_job(out))(shard)["kept"] == 2
    first, second = {
        row["recording"]: row for row in column.read_index(Storage(out), "audio", shard).to_pylist()
    }.values()
    local = Job(Codes(Patient()), "codes-local", "audio", {}, str(out))
    assert ShardWorker(local)(shard)["status"] == "finished"

    store = SlowStore(first["offset"] + first["size"], PATIENCE_S)

    def computing() -> None:
        store.go.set()
        assert store.asked.wait(PATIENCE_S), "the second recording is not read before the first is computed"

    worker = ShardWorker(replace(local, stage=Codes(Patient(computing)), column="codes-remote"))
    remote(monkeypatch, worker, store)
    (out / "columns" / "codes-remote").mkdir()
    row = worker(shard)
    assert row["status"] == "finished" and store.reads >= 2, row
    tars = [
        (out / "columns" / name / f"{shard}.tar").read_bytes() for name in ("codes-local", "codes-remote")
    ]
    assert tars[0] == tars[1]


def test_a_tar_that_breaks_off_on_its_way_fails_the_shard_and_rejects_nothing(out, monkeypatch):
    shard = shard_of(out)
    ShardWorker(decode_job(out))(shard)
    first = column.read_index(Storage(out), "audio", shard).to_pylist()[0]
    worker = ShardWorker(Job(Codes(Patient()), "codes-x", "audio", {}, str(out)))
    store = SlowStore(first["offset"] + first["size"], PATIENCE_S)
    store.go.set()
    remote(monkeypatch, worker, store)
    (out / "columns" / "codes-x").mkdir()
    with open(out / "columns" / "audio" / f"{shard}.tar", "r+b") as tar:
        tar.truncate(first["offset"] + first["size"] + 1000)
    row = worker(shard)
    assert (
        row["status"] == "failed" and "are needed" in row["error"] and row["error"].startswith("OSError")
    ), row
    assert not list((out / "columns" / "codes-x").iterdir())


def test_the_next_source_is_fetched_while_one_is_decoded(out):
    shard, places = shard_of(out), {}
    assert ShardWorker(decode_job(out))(shard)["kept"] == 2
    tar = out / "columns" / "audio" / f"{shard}.tar"
    expected = tar.read_bytes()
    table = catalog.read_plan(out / "plan.parquet")
    rows = table.to_pylist()
    for row in rows:
        address = f"s3://music/{Path(row['path']).name}"
        places[address], row["path_bytes"] = row["path"], address.encode()
    pq.write_table(table.from_pylist(rows, table.schema), out / "plan.parquet")
    for path in (out / "columns" / "audio").iterdir():
        path.unlink()
    second = threading.Event()
    begun = []

    @contextlib.contextmanager
    def fetch(address):
        begun.append(address)
        if len(begun) == 2:
            second.set()
        yield places[address]
        assert second.wait(PATIENCE_S), "the second is not fetched before the first is decoded"

    row = ShardWorker(decode_job(out, fetch=OneAhead(fetch)))(shard)
    assert row["status"] == "finished" and sorted(begun) == sorted(places), row
    assert tar.read_bytes() == expected


def test_an_out_that_was_deleted_is_not_made_again(out, tmp_path):
    shard = shard_of(out)
    worker = ShardWorker(decode_job(out))
    out.rename(tmp_path / "elsewhere")
    assert worker(shard)["status"] == "failed"
    with pytest.raises(FileNotFoundError), column.publishing(worker.storage, "audio", shard):
        pass
    assert not out.exists()
