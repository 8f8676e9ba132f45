"""Tables of recordings: `catalog.parquet` (what was found) and `plan.parquet` (which shard it is in).

`path_bytes` is exact (file names need not be UTF-8); `path` is for people."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from stages.shards.record import UPGRADE
from stages.shards.storage import Storage, fields

ROW_GROUP = 65_536  # rows; fixed, so that the same rows are the same bytes

# One row per path found. `status` is kept, rejected, duplicate or excluded (by the user; never read).
CATALOG = pa.schema(
    # recording: 16 hex digits, null when excluded; reason: why rejected; duplicate_of: of the same bytes
    fields(pa.string(), "recording status reason duplicate_of path")
    + fields(pa.binary(), "path_bytes")  # absolute path, or s3://bucket/key
    + fields(pa.string(), "root")
    + fields(pa.binary(), "name_bytes")  # path relative to its root: part of the id
    + fields(pa.int64(), "size mtime_ns")  # bytes; nanoseconds
    # quick: sha256 of first MiB, last MiB and size; sha256: of the whole file, null until it was needed
    + fields(pa.string(), "quick sha256 container codec")
    + fields(pa.int64(), "rate_hz channels")
    + fields(pa.float64(), "duration_s")  # before it is decoded
    # header, or size: an estimate, where no header states a length that the file can hold; version 1 lacks it
    + fields(pa.string(), "duration_from"),
    metadata={"overtone.catalog": "2"},
)

# One row per recording ever planned, in planning order; the rows of a shard are neighbours.
PLAN = pa.schema(
    fields(pa.string(), "recording shard")
    + fields(pa.int64(), "order")  # ascending; gaps where a recording moved to a new shard
    + fields(pa.int32(), "attempt")  # 1 more each time a request planned it again
    + fields(pa.string(), "path")
    + fields(pa.binary(), "path_bytes")
    + fields(pa.int64(), "size mtime_ns")  # bytes; nanoseconds
    + fields(pa.string(), "quick sha256")  # as in the catalog
    + fields(pa.float64(), "duration_s")  # as in the catalog when planned
    # split: train or valid; tombstone: null, or edited, vanished, excluded, duplicate
    + fields(pa.string(), "split tombstone"),
    metadata={"overtone.plan": "1"},
)

REMEDIES = {
    "catalog": "move it away to have the audio scanned again",
    # whoever makes it anew plans every recording into other shards
    "plan": "restore it from a copy (an older version of the object, a snapshot), or use another OUT",
}
LATER = frozenset({"duration_from"})  # columns that came after the first version
BYTES_PER_S = 16_000  # 128 kbit/s, where nothing states a duration
LEAST_BYTES_PER_S = 12.5  # 100 bit/s: FLAC of digital silence; no codec says less about a second


def check_schema(path: Path, schema: pa.Schema, what: str) -> None:
    """ValueError, with the remedy, unless `path` is a parquet file of this schema, or its first version."""
    older = [pa.schema([field for field in schema if field.name not in LATER])]
    try:
        seen = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{what} {path}: {error}; {REMEDIES[what]}") from None
    if any(seen.equals(one) for one in (schema, *older)):
        return
    key = f"overtone.{what}".encode()
    version, own = ((one.metadata or {}).get(key, b"none").decode() for one in (seen, schema))
    if version not in map(str, range(1, int(own) + 1)):
        raise ValueError(f"{what} {path} has format {version}; this version reads {own}: {UPGRADE}")
    raise ValueError(f"{what} {path}: its columns are not those of its format {version}; {REMEDIES[what]}")


def read_catalog(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Rows in the order of `path_bytes`. ValueError when the file is not a catalog."""
    check_schema(Path(path), CATALOG, "catalog")
    return ds.dataset(path, CATALOG, format="parquet").to_table(columns)


def read_plan(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Rows in planning order. ValueError when the file is not a plan."""
    check_schema(Path(path), PLAN, "plan")
    return pq.read_table(path, columns=columns, partitioning=None)


def likely_seconds(plan: pa.Table, most_h: float = math.inf) -> np.ndarray:
    """float64 seconds of each recording before it is decoded, of a plan's `duration_s` and `size`.

    Plans of older versions took every header's word: a file holds no more than its bytes can, and a longer
    recording than `most_h` is refused anyway."""
    seconds, size = plan["duration_s"].to_numpy(), plan["size"].to_numpy()
    seconds = np.where(seconds > 0, seconds, size / BYTES_PER_S)
    return np.minimum(seconds, np.minimum(size / LEAST_BYTES_PER_S, 3600 * most_h))


def live(plan: pa.Table) -> pa.Table:
    """The rows without a tombstone."""
    return plan.filter(pc.is_null(plan["tombstone"]))


def shard_slices(plan: pa.Table) -> dict[str, tuple[int, int]]:
    """Shard → (first row, rows) of this table, shards in planning order."""
    if not plan.num_rows:
        return {}
    codes = pa.concat_arrays(plan["shard"].chunks).dictionary_encode()
    index = codes.indices.to_numpy()
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    names = codes.dictionary.take(pa.array(index[starts])).to_pylist()
    assert len(set(names)) == len(names), "rows of a shard must be neighbours"
    stops = np.append(starts[1:], len(index))
    return {n: (int(a), int(b - a)) for n, a, b in zip(names, starts, stops, strict=True)}


def write_parquet(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """A local file that appears whole or not at all; equal rows give equal bytes."""
    place = Storage(Path(path).parent, standing=True).attempt(Path(path).name)
    with place as attempt, pq.ParquetWriter(attempt, schema, compression="zstd") as writer:
        for table in _row_groups(schema, batches):
            writer.write_table(table, row_group_size=ROW_GROUP)


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Row groups that do not depend on the size of the batches."""
    held = schema.empty_table()
    for batch in batches:
        held = pa.concat_tables([held, pa.Table.from_batches([batch]).select(schema.names).cast(schema)])
        while held.num_rows >= ROW_GROUP:
            yield held.slice(0, ROW_GROUP).combine_chunks()
            held = held.slice(ROW_GROUP)
    if held.num_rows:
        yield held.combine_chunks()


class ShardRows:
    """The live recordings of each shard, by id, of a plan that is read once: what decoding needs of them."""

    COLUMNS = ["recording", "shard", "path", "path_bytes", "size", "mtime_ns", "quick", "tombstone"]

    def __init__(self, path: Path | str):
        self._live = live(read_plan(path, self.COLUMNS)).drop_columns("tombstone")
        self.slices = shard_slices(self._live)

    @property
    def recordings(self) -> pa.Array:
        return self._live["recording"].combine_chunks()

    def __call__(self, shard: str) -> list[dict]:
        """Rows of `PLAN`, some columns of it."""
        start, count = self.slices[shard]
        return self._live.slice(start, count).sort_by("recording").to_pylist()


def read_shard(storage: Storage, shard: str) -> list[dict]:
    """The live recordings of one shard, by id, from OUT/plan.parquet; reads only the rows it needs."""
    wanted = (pc.field("shard") == shard) & pc.field("tombstone").is_null()
    path = storage.path("plan.parquet")
    table = pq.read_table(path, filesystem=storage.fs, filters=wanted, partitioning=None)
    return table.sort_by("recording").to_pylist()
