"""An OUT made of gathered tables alone, of any size, as a run of `labels` leaves them: for tests and for the
benchmark."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import yaml

from stages.shards import histograms
from stages.shards.storage import Storage

COLUMNS = {"audio": "audio", "codes": "codes-aaaaaaaa", "cqt": "cqt-bbbbbbbb"}
PER_RECORDING = 8  # segments: four minutes


def out(
    folder: Path,
    shards: int,
    per_shard: int = 24,
    changes: Iterable[str] = (),
    codes: int = 64,
    levels: int = 2,
) -> Path:
    """Ordinary music, spread evenly; `changes`: SQL on the tables segments, shards and plan before they are
    written."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = {
        "audio": {"stage": "decode"},
        COLUMNS["codes"]: {"stage": "codes"},
        COLUMNS["cqt"]: {"stage": "cqt", "fmin_hz": 32.7, "bins": 336, "bins_per_octave": 48},
    }
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"plan": {"shard_minutes": 60}, "columns": recipes, "current": COLUMNS})
    )
    with duckdb.connect(
        ":memory:", config={"memory_limit": "3GB", "temp_directory": str(folder / "spill"), "threads": 2}
    ) as db:
        _segments(db, shards * per_shard, per_shard)
        _shards(db, shards, per_shard)
        db.execute(
            "CREATE TABLE plan AS SELECT DISTINCT recording, shard, '/music/' || recording || '.flac' AS "
            "path, CASE WHEN hash(recording) % 50 = 0 THEN 'valid' ELSE 'train' END AS split FROM segments"
        )
        db.execute(
            "CREATE TABLE rejected AS SELECT 'decode' AS stage, 's' AS shard, 'r' AS recording, "
            "'/music/bad' || n || '.mp3' AS path, CASE WHEN n % 3 = 0 THEN 'empty file' ELSE 'NaN or "
            "infinite samples' END AS reason FROM range(7) t(n)"
        )
        for change in changes:
            db.execute(change)
        for name in ("segments", "shards", "plan", "rejected"):
            db.execute(
                f"COPY {name} TO '{folder / name}.parquet' (FORMAT parquet, COMPRESSION zstd, "
                f"ROW_GROUP_SIZE 122880)"
            )
    _sums(Storage(folder), shards, codes, levels)
    return folder


def _segments(db: duckdb.DuckDBPyConnection, count: int, per_shard: int) -> None:
    db.execute("SELECT setseed(0.5)")
    db.execute(f"""CREATE TABLE segments AS SELECT '{" ".join(COLUMNS.values())}' AS columns,
        printf('s%012x', n // {per_shard}) AS shard,
        printf('%016x', hash(n // {PER_RECORDING})) || printf('-%05d', n % {PER_RECORDING}) AS key,
        printf('%016x', hash(n // {PER_RECORDING})) AS recording, n % {PER_RECORDING} AS "index",
        (n % {PER_RECORDING}) * 720000 AS start,
        720000 AS samples, 2250 AS frames, -3 * random() AS peak_db, -18 + 4 * random() AS rms_db,
        -16 + 4 * random() AS lufs,
        0.02 * random() AS silence, 0.0001 * random() AS clipping, 0.001 * random() AS dc,
        11000 + 1000 * random() AS bandwidth_hz,
        0.5 + 0.4 * random() AS stereo, [7 + random(), 8 + random()] AS code_entropy_bits, [300,
        700] AS codes_used,
        12 * random() AS cqt_max, 0.5 + 0.2 * random() AS cqt_mean, [random()
        for x in range(7)] AS cqt_octaves,
        40 * random() - 20 AS tuning_cents, random() AS tuning_strength, 44100 AS source_rate_hz,
        2 AS source_channels, 'flac' AS source_codec,
        'flac' AS source_container, 0 AS damaged_packets, 240.0 AS header_s, 240.0 AS decoded_s,
        printf('%064x', hash(n)) AS source_sha256, CASE WHEN n % {PER_RECORDING} < 4 THEN
        printf('%016x%016x%016x', hash(n), hash(n + 1000000000), hash(n + 2000000000))
        END AS fingerprint FROM range({count}) t(n)""")


def _shards(db: duckdb.DuckDBPyConnection, shards: int, per_shard: int) -> None:
    db.execute(f"""CREATE TABLE shards AS SELECT printf('s%012x', n) AS shard, name AS "column",
        {per_shard} // {PER_RECORDING} AS inputs,
        {per_shard} // {PER_RECORDING} AS kept, 0 AS rejected, {per_shard} AS segments,
        {per_shard} * 720000 AS samples, {per_shard} * 2250 AS frames,
        {per_shard} * size AS bytes, printf('%064x', n) AS sha256, 'cpu' AS device, 'node' || (n % 4) AS host,
        1.7e9 + 5.0 * n + 40 * turn AS started, 18 + 4 * random() AS wall_s, 15.0 AS busy_s,
        '{{}}' AS facts, {per_shard} / 120.0 AS hours,
        {per_shard} * 30 / 20.0 AS times_real_time, 1 AS attempts, '{{}}' AS rejects
        FROM range({shards}) t(n), (VALUES ('{COLUMNS["audio"]}', 1440044, 0), ('{COLUMNS["codes"]}',
        36128, 1), ('{COLUMNS["cqt"]}', 1512128, 2))
        v(name, size, turn)""")


def _sums(storage: Storage, shards: int, codes: int, levels: int) -> None:
    rng, rows = np.random.default_rng(0), []
    for first in range(0, shards, histograms.BLOCK):
        names = [f"s{n:012x}" for n in range(first, min(first + histograms.BLOCK, shards))]
        for column, own in (
            (COLUMNS["codes"], {"codes": rng.integers(900, 1100, (levels, codes))}),
            (COLUMNS["cqt"], {"cqt": np.ones((2, 336))}),
        ):
            rows += [{"column": column, "shards": names, **row} for row in histograms.table(own).to_pylist()]
    storage.write_table(histograms.NAME, pa.Table.from_pylist(rows, histograms.TABLE))
