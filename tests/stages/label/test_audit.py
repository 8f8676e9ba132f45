"""What the audit gathers from records of this version and of older ones."""

import errno
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label import audit, gathering
from stages.label.decode import wav_bytes
from stages.label.shard import ShardWorker
from stages.shards import checking, column
from stages.shards import record as records
from stages.shards.column import publishing
from stages.shards.storage import Storage
from tests.stages.label.made import SHARD, Ear, audio, codes_job

SLOWEST = [{"recording": "b", "seconds": 2.5, "times_real_time": 4.0}]
LIVE = pa.array(["a", "b"])


def publish(storage: Storage, shard: str, recording: str, run: dict) -> None:
    with publishing(storage, "audio", shard) as publication:
        row = {"recording": recording, "index": 0, "start": 0, "samples": 640, "frames": 2}
        publication.writer.add(
            f"{recording}-00000",
            {"json": b"{}", "wav": wav_bytes(np.zeros(640, np.int16))},
            row,
            {"loud": 1.0},
        )
        publication.writer.keep({})
        totals = publication.writer.finish()
        publication.record = records.Record(
            shard=shard,
            column="audio",
            recipe={},
            inputs=1,
            kept=1,
            rejects=[],
            source_sha256=None,
            software={},
            device="cpu",
            run=run,
            **totals,
        )


def test_slowest_recordings_are_gathered_beside_shards_of_older_versions(tmp_path):
    storage = Storage(tmp_path)
    publish(storage, "s1", "a", {"wall_s": 1.0})
    gathering.gather(storage, ("audio",), ["s1"], LIVE)
    gathering.compact(storage, LIVE)
    older = pq.read_table(tmp_path / "shards.parquet").drop_columns("slowest")
    pq.write_table(older, tmp_path / "shards.parquet")

    publish(storage, "s2", "b", {"wall_s": 1.0, "slowest": SLOWEST})
    gathering.gather(storage, ("audio",), ["s2"], LIVE)
    gathering.compact(storage, LIVE)
    rows = storage.read_table("shards.parquet", ["shard", "slowest"]).to_pylist()
    assert rows == [{"shard": "s1", "slowest": None}, {"shard": "s2", "slowest": SLOWEST}]
    assert gathering.gathered(storage, ("audio",)) == {"s1", "s2"}


def test_times_are_no_part_of_what_a_record_vouches_for(tmp_path):
    storage = Storage(tmp_path)
    publish(storage, "s1", "a", {})
    name = records.file("audio", "s1", "json")
    fields = json.loads(storage.read(name))
    storage.write(name, json.dumps(fields | {"run": {"slowest": SLOWEST}}).encode())
    assert records.read(storage, "audio", "s1").run["slowest"] == SLOWEST
    storage.write(name, json.dumps(fields | {"facts": {"slowest": SLOWEST}}).encode())
    with pytest.raises(ValueError, match="is damaged"):
        records.read(storage, "audio", "s1")


def labels(storage: Storage, ear: Ear | None = None, name: str = "codes-ear", shard: str = SHARD) -> None:
    ear = ear or Ear()
    row = ShardWorker(codes_job(storage.root, ear, name))(shard)
    assert row["status"] == "finished", row


def forge(storage: Storage, change, shard: str = SHARD, name: str = "codes-ear", **changes) -> None:
    """A column whose rows `change` falsifies before they are written, with sums that fit."""
    index = column.read_index(storage, name, shard).to_pylist()
    tar = (storage.local(records.file(name, shard, "tar"))).read_bytes()
    old = records.read(storage, name, shard)
    with publishing(storage, name, shard) as publication:
        for row in change([row | {"data": tar[row["offset"] :][: row["size"]]} for row in index]):
            identity = {field: row[field] for field in ("recording", "start", "samples", "frames")}
            publication.writer.add(row["key"], {row["member"]: row["data"]}, identity, {})
        publication.writer.keep({})
        publication.record = replace(old, beside_sha256={}, **(publication.writer.finish() | changes))


def other_frames(rows: list[dict]) -> list[dict]:
    rows[1] |= {"frames": 9, "samples": 9 * 320, "data": column.npy_bytes(np.zeros((9, 1), np.uint16))}
    return rows


def test_labels_with_other_frame_counts_than_the_audio_are_refused(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    labels(storage)
    forge(storage, lambda rows: rows)
    assert audit.damaged(storage, SHARD, ["audio", "codes-ear"]) == {}
    forge(storage, other_frames)
    checking.check(storage, "codes-ear", SHARD)  # in itself it is whole
    assert audit.damaged(storage, SHARD, ["audio", "codes-ear"]) == {
        "codes-ear": f"codes-ear/{SHARD}: 1 segments differ from the audio column, first a-00001"
    }


def odd_samples(rows: list[dict]) -> list[dict]:
    rows[-1] |= {"samples": rows[-1]["samples"] + 1}  # the frames are the same
    return rows


@pytest.mark.parametrize(
    "change, changes, said",
    [
        (lambda rows: rows[:-1], {}, "1 segments differ from the audio column, first c-00001"),
        (
            lambda rows: rows[:-2],
            {"kept": 2, "inputs": 2},
            "2 segments differ from the audio column, first c-00000",
        ),
        (odd_samples, {}, "1 segments differ from the audio column, first c-00001"),
    ],
)
def test_labels_must_be_of_the_audios_segments(tmp_path, change, changes, said):
    storage = Storage(tmp_path)
    audio(storage)
    labels(storage)
    forge(storage, change, **changes)
    assert audit.damaged(storage, SHARD, ["audio", "codes-ear"]) == {
        "codes-ear": f"codes-ear/{SHARD}: {said}"
    }


def test_a_recording_that_labels_reject_is_missing_by_right(tmp_path):
    storage = Storage(tmp_path)
    audio(storage, live=2)
    labels(storage, Ear(refuses=("a",)))
    assert audit.damaged(storage, SHARD, ["audio", "codes-ear"]) == {}
    forge(storage, lambda rows: rows, rejects=[{"recording": "z", "path": "", "reason": ""}])
    assert (
        "2 segments differ from the audio column, first a-00000"
        in audit.damaged(storage, SHARD, ["audio", "codes-ear"])["codes-ear"]
    )


def test_an_index_with_rows_of_a_rejected_recording_is_refused(tmp_path):
    storage = Storage(tmp_path)
    audio(storage, live=2)
    labels(storage)
    forge(storage, lambda rows: rows, rejects=[{"recording": "b", "path": "", "reason": ""}], kept=1)
    said = f"codes-ear/{SHARD}: its index holds segments of 1 rejected recordings, first b"
    assert audit.damaged(storage, SHARD, ["audio", "codes-ear"]) == {"codes-ear": said}


def test_each_column_has_its_own_damage_and_labels_are_judged_without_their_audio_too(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    labels(storage)
    labels(storage, name="codes-two")
    names = ("audio", "codes-ear", "codes-two")
    for name in names[:2]:
        storage.delete(records.file(name, SHARD, "tar"))
    assert audit.damaged(storage, SHARD, names) == {
        name: f"{name}/{SHARD}.tar is missing" for name in names[:2]
    }
    row = audit.AuditWorker(str(tmp_path), names)(SHARD)
    assert (row["shard"], row["column"], row["stage"], row["status"]) == (SHARD, "audit", "audit", "failed")
    assert row["error"] == f"audio/{SHARD}.tar is missing; codes-ear/{SHARD}.tar is missing"
    well = audit.AuditWorker(str(tmp_path), names[2:])(SHARD)
    assert (
        (well["status"], well["error"]) == ("finished", None)
        and 0 <= well["wall_s"] < 60
        and well["started"] > 1e9
    )


def test_an_audit_leaves_a_note_that_goes_with_any_column_of_its_shard(tmp_path):
    storage, names = Storage(tmp_path), ("audio", "codes-ear")
    audio(storage)
    assert audit.AuditWorker(str(tmp_path), names)(SHARD)["status"] == "failed"
    assert audit.audited(storage, names) == set()
    labels(storage)
    assert audit.AuditWorker(str(tmp_path), names)(SHARD)["status"] == "finished"
    assert audit.audited(storage, names) == {SHARD} and audit.audited(storage, ("audio",)) == set()
    records.discard(storage, "codes-ear", "another")
    assert audit.audited(storage, names) == {SHARD}
    records.discard(storage, "codes-ear", SHARD)
    assert audit.audited(storage, names) == set()


def test_the_audit_reads_no_tar_and_verifying_reads_it_whole(tmp_path):
    storage = Storage(tmp_path)
    audio(storage)
    tar = storage.local(records.file("audio", SHARD, "tar"))
    data = bytearray(tar.read_bytes())
    data[-2000] ^= 1
    tar.write_bytes(data)
    assert audit.AuditWorker(str(tmp_path), ("audio",))(SHARD)["status"] == "finished"
    assert "has sha256" in audit.damaged(storage, SHARD, ["audio"])["audio"]
    tar.write_bytes(data[:-512])
    assert "bytes, its record says" in audit.AuditWorker(str(tmp_path), ("audio",))(SHARD)["error"]


def test_bytes_that_cannot_be_read_fail_the_shard(tmp_path, monkeypatch):
    audio(Storage(tmp_path))

    def read(self, name):
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(Storage, "read", read)
    row = audit.AuditWorker(str(tmp_path), ("audio",))(SHARD)
    assert row["status"] == "failed" and row["error"] == f"cannot be read back: [Errno {errno.EIO}] no answer"
    with pytest.raises(OSError, match="no answer"):
        audit.damaged(Storage(tmp_path), SHARD, ["audio"])


def test_labels_of_another_audio_tar_are_refused(tmp_path):
    storage = Storage(tmp_path)
    audio(storage, seed=0)
    labels(storage)
    audio(storage, seed=1)  # of the same segments, but other sounds
    said = f"codes-ear/{SHARD} was made from another audio tar than the one that is there"
    assert audit.damaged(storage, SHARD, ("audio", "codes-ear")) == {"codes-ear": said}
    assert audit.damaged(storage, SHARD, ("codes-ear",)) == {}, "nothing to compare with"
