"""What the audit gathers from records of this version and of older ones."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.label import audit
from stages.label.decode import wav_bytes
from stages.shards import record as records
from stages.shards.column import publishing
from stages.shards.storage import Storage

SLOWEST = [{"recording": "b", "seconds": 2.5, "times_real_time": 4.0}]
LIVE = pa.array(["a", "b"])


def publish(storage: Storage, shard: str, recording: str, run: dict) -> None:
    with publishing(storage, "audio", shard) as publication:
        row = {"recording": recording, "index": 0, "start": 0, "samples": 640, "frames": 2}
        publication.writer.add(f"{recording}-00000", {"json": b"{}", "wav": wav_bytes(np.zeros(640, np.int16))}, row, {"loud": 1.0})
        publication.writer.keep({})
        totals = publication.writer.finish()
        publication.record = records.Record(shard=shard, column="audio", recipe={}, inputs=1, kept=1, rejects=[], source_sha256=None,
                                            software={}, device="cpu", run=run, **totals)


def test_slowest_recordings_are_gathered_beside_shards_of_older_versions(tmp_path):
    storage = Storage(tmp_path)
    publish(storage, "s1", "a", {"wall_s": 1.0})
    audit.gather(storage, ("audio",), ["s1"], LIVE)
    older = pq.read_table(tmp_path / "shards.parquet").drop_columns("slowest")
    pq.write_table(older, tmp_path / "shards.parquet")

    publish(storage, "s2", "b", {"wall_s": 1.0, "slowest": SLOWEST})
    audit.gather(storage, ("audio",), ["s2"], LIVE)
    rows = storage.read_table("shards.parquet", ["shard", "slowest"]).to_pylist()
    assert rows == [{"shard": "s1", "slowest": None}, {"shard": "s2", "slowest": SLOWEST}]
    assert audit.gathered(storage, ("audio",)) == {"s1", "s2"}


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
