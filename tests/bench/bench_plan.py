"""Plan a synthetic catalogue and print wall time and peak memory.

    python tests/bench/bench_plan.py [RECORDINGS=2400000]

4 minutes each: 2.4 million are 160,000 hours. Plans from nothing, then again with 1 % more.
"""

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from stages.label.plan import plan  # noqa: E402
from stages.shards.catalog import CATALOG, write_parquet  # noqa: E402

BATCH = 65_536


def batches(count: int) -> Iterator[pa.RecordBatch]:
    """Kept rows with paths and hashes of real length; sorted paths, ids without order."""
    for start in range(0, count, BATCH):
        numbers = range(start, min(count, start + BATCH))
        rng = np.random.default_rng(start)
        names = [
            f"artist {n // 100:06d}/album {n // 10:07d}/{n:08d} a title of some length.mp3" for n in numbers
        ]
        paths = ["/mnt/music/library/" + name for name in names]
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in names]
        rows = len(names)
        columns = {
            "recording": [h[:16] for h in hashes],
            "status": ["kept"] * rows,
            "reason": [None] * rows,
            "duplicate_of": [None] * rows,
            "path": paths,
            "path_bytes": [p.encode() for p in paths],
            "root": ["/mnt/music/library"] * rows,
            "name_bytes": [n.encode() for n in names],
            "size": rng.integers(3_000_000, 9_000_000, rows),
            "mtime_ns": rng.integers(1 << 60, 1 << 61, rows),
            "quick": hashes,
            "sha256": [None] * rows,
            "container": ["mp3"] * rows,
            "codec": ["mp3"] * rows,
            "rate_hz": [44_100] * rows,
            "channels": [2] * rows,
            "duration_s": rng.uniform(60, 420, rows),
            "duration_from": ["header"] * rows,
        }
        arrays = [pa.array(columns[field.name], field.type) for field in CATALOG]
        yield pa.RecordBatch.from_arrays(arrays, schema=CATALOG)


def measured(previous: str, catalog: str, out: str) -> None:
    begun = time.perf_counter()
    summary = plan(Path(previous), Path(catalog), Path(out), shard_minutes=60, validation_share=0.02)
    seconds = time.perf_counter() - begun
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:6.1f} s  {peak_gib:5.2f} GiB peak RSS  {summary}", flush=True)


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, rows in (("first", count), ("grown", count + count // 100)):
            write_parquet(folder / f"{label}.parquet", CATALOG, batches(rows))
        # Each in a process of its own: the peak must be the plan's, not the catalogue maker's.
        for previous, catalog, out in (("none", "first", "plan"), ("plan", "grown", "again")):
            paths = [str(folder / f"{stem}.parquet") for stem in (previous, catalog, out)]
            subprocess.run([sys.executable, __file__, "--measure", *paths], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measured(*sys.argv[2:])
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 2_400_000)
