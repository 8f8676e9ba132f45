"""A finished shard in every column, its labels compared with its audio; that it was is a fact on its own."""

import functools
import hashlib
import io
import json
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from stages.label.rows import rows
from stages.shards import checking, column
from stages.shards.storage import Storage

CPU_S = 0.0002  # for a second of audio, about
SPAN = ["key", "recording", "start", "samples", "frames"]  # of an index row: the same in every column


@dataclass(frozen=True)
class AuditWorker:
    """The last stage of the chain. It reads tables: the tars' bytes were compared when they were written, by
    the store with their checksums, and `overtone verify` is what reads them all. A finished shard's rows of
    the tables go along: `made`."""

    out: str
    columns: tuple[str, ...]  # audio first

    def __call__(self, shard: str) -> dict:
        started = time.time()
        row = {"shard": shard, "column": "audit", "stage": "audit", "host": platform.node()}
        storage = Remembering(self.out, standing=True)
        try:
            damage = damaged(storage, shard, self.columns, whole=False)
            if not damage:
                row["made"] = rows(storage, self.columns, shard)
                note = {"format": 1, "shard": shard, "columns": self.columns}
                storage.write(f"{folder(self.columns)}/{shard}.json", json.dumps(note).encode())
        except OSError as error:
            damage = {"": f"cannot be read back: {error}"}
        row |= {"status": "failed" if damage else "finished", "error": "; ".join(damage.values()) or None}
        return row | {"started": started, "wall_s": time.time() - started}


class Remembering(Storage):
    """Reads each small file once."""

    def __init__(self, root: str, standing: bool):
        super().__init__(root, standing)
        self.read = functools.cache(super().read)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read(name)), columns=columns)


def folder(columns: Iterable[str]) -> str:
    """Of the notes that shards were audited with these columns."""
    return f"audited/{hashlib.sha256(' '.join(columns).encode()).hexdigest()[:8]}"


def audited(storage: Storage, columns: Iterable[str]) -> set[str]:
    """Shards, from one listing."""
    return {name.removesuffix(".json") for name in storage.names(folder(columns))}


def damaged(storage: Storage, shard: str, columns: Iterable[str], whole: bool = True) -> dict[str, str]:
    """Damaged columns of a shard and what is wrong with each.

    Besides each column's own bytes: every key has the same samples and frames in all columns, but for
    recordings that the labels reject, and labels were made from the present audio. OSError when bytes could
    not be read, which is no damage."""
    found, audio_sha256, audio = {}, None, {}
    for name in columns:
        try:
            record = checking.check(storage, name, shard, whole)
            index = column.read_index(storage, name, shard)
        except ValueError as error:
            found[name] = str(error)
            continue
        segments = {row["key"]: row for row in index.select(SPAN).to_pylist()}
        if audio_sha256 is None and record.source_sha256 is None:
            audio_sha256, audio = record.sha256, segments
            continue
        refused = {r["recording"] for r in record.rejects}
        expected = {key: row for key, row in audio.items() if row["recording"] not in refused}
        if audio_sha256 and record.source_sha256 != audio_sha256:
            found[name] = f"{name}/{shard} was made from another audio tar than the one that is there"
        elif audio_sha256 and segments != expected:
            odd = sorted(k for k in expected.keys() | segments.keys() if expected.get(k) != segments.get(k))
            found[name] = f"{name}/{shard}: {len(odd)} segments differ from the audio column, first {odd[0]}"
    return found
