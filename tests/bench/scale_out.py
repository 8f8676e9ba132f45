"""A synthetic OUT of any size, as a run of `labels` leaves it that has come to some share of its shards:
plan, columns of empty files, notes of the audit, tables in parts with as many rows as real ones have."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.labelling import registry
from pipeline.labelling.progress import Progress
from pipeline.labelling.run import LabelRun
from stages.label import audit, gathering, recipe
from stages.label.plan import plan
from stages.label.rows import INDEX_ROWS, SHARDS, Rows
from stages.shards import catalog
from stages.shards.catalog import CATALOG, write_parquet
from stages.shards.storage import Storage
from tests.bench.bench_plan import batches

EACH = 15  # recordings of a shard
SEGMENTS = 8  # of a recording: four minutes
KINDS = ("tar", "index.parquet", "stats.parquet", "sums.parquet", "json")
CONFIG = """
recipe: {{plan: {{shard_minutes: 60, validation_share: 0.02}}, codes: {{teacher: best_rq}}, cqt: {{}}}}
run: {{audio: {folder}/music, out: {out}}}
"""
POOL = 250_000  # rows of statistics, of which each part has a stretch


class Made:
    """Below `folder`: config.yaml and `out`, a local folder."""

    def __init__(self, folder: Path):
        self.folder, self.out = folder, Storage(folder / "out")
        self.config = folder / "config.yaml"

    def plan(self, shards: int) -> str:
        (self.folder / "music").mkdir()
        (self.folder / "music" / "one.wav").write_bytes(b"RIFF")
        (self.folder / "out").mkdir()
        self.config.write_text(CONFIG.format(folder=self.folder, out=self.out.root))
        found, made = (self.out.local(f"{name}.parquet") for name in ("catalog", "plan"))
        write_parquet(found, CATALOG, batches(shards * EACH))
        summary = plan(None, found, made, shard_minutes=60, validation_share=0.02)
        self.columns()
        return f"{summary.recordings:,} recordings, {summary.shards:,} shards, {summary.hours:,.0f} h"

    def columns(self) -> tuple[str, ...]:
        """Of the recipe, which is written down."""
        config = recipe.load(str(self.config))
        run = LabelRun(config, self.out, Progress(self.out), registry.read(self.out), [], None, [])
        run.weights = run.known_weights(None, False)
        return run.registry.names

    def files(self, shards: list[str]) -> None:
        columns = self.columns()
        for place, kinds in (
            *(
                (f"columns/{name}", KINDS if "-" in name else [k for k in KINDS if k[1] != "u"])
                for name in columns
            ),
            (audit.folder(columns), KINDS[-1:]),
        ):
            folder = self.out.local(place)
            folder.mkdir(parents=True, exist_ok=True)
            for shard in shards:
                for kind in kinds:
                    os.close(os.open(folder / f"{shard}.{kind}", os.O_CREAT | os.O_WRONLY, 0o644))

    def parts(self, planned: catalog.ShardRows, shards: list[str]) -> Iterator[dict[str, Rows]]:
        """What the audit gives of each `gathering.PART` shards."""
        rng, live = np.random.default_rng(0), planned.recordings
        pool, columns = statistics(rng), self.columns()
        for first in range(0, len(shards), gathering.PART):
            some = shards[first : first + gathering.PART]
            counts = [planned.slices[shard] for shard in some]
            own = pa.chunked_array([live.slice(*count) for count in counts]).combine_chunks()
            sizes = np.array([SEGMENTS * count for _, count in counts])
            yield rows(rng, pool, columns, some, own, sizes)


def statistics(rng: np.random.Generator) -> pa.Table:
    """As many columns and digits as real segments have."""
    whole = {
        "start": (np.arange(POOL) % SEGMENTS * 720_000),
        "samples": np.full(POOL, 720_000),
        "frames": np.full(POOL, 2250),
    }
    for name, low, high, digits in (
        ("peak_db", -6, 0, 14),
        ("rms_db", -30, -10, 14),
        ("lufs", -25, -8, 2),
        ("silence", 0, 0.1, 14),
        ("clipping", 0, 0.0001, 14),
        ("dc", -0.001, 0.001, 14),
        ("bandwidth_hz", 8000, 12_000, 1),
        ("stereo", 0.5, 1, 3),
        ("cqt_max", 1, 12, 6),
        ("cqt_mean", 0.5, 0.7, 14),
        ("tuning_cents", -20, 20, 1),
        ("tuning_strength", 0, 1, 3),
        ("header_s", 239, 241, 2),
        ("decoded_s", 239, 241, 2),
    ):
        whole[name] = rng.uniform(low, high, POOL).round(digits)
    for name, width in (("code_entropy_bits", 8), ("cqt_octaves", 7)):
        flat = pa.array(rng.uniform(0, 9, POOL * width).round(9))
        whole[name] = pa.FixedSizeListArray.from_arrays(flat, width).cast(pa.list_(pa.float64()))
    flat = pa.array(rng.integers(100, 1000, POOL * 8))
    whole["codes_used"] = pa.FixedSizeListArray.from_arrays(flat, 8).cast(pa.list_(pa.int64()))
    whole["source_rate_hz"], whole["source_channels"] = np.full(POOL, 44_100), np.full(POOL, 2)
    whole["source_codec"] = whole["source_container"] = pa.repeat("mp3", POOL)
    return pa.table(whole)


def rows(
    rng: np.random.Generator,
    pool: pa.Table,
    columns: tuple[str, ...],
    shards: list[str],
    recordings: pa.Array,
    sizes: np.ndarray,
) -> dict[str, Rows]:
    """sizes: segments of each shard."""
    count = int(sizes.sum())
    at = int(rng.integers((len(pool) - count) // SEGMENTS)) * SEGMENTS
    stats, place = pool.slice(at, count), np.repeat(np.arange(len(shards)), sizes)
    recording = recordings.take(pa.array(np.repeat(np.arange(len(recordings)), SEGMENTS)))
    numbers = pa.array([f"{n:05d}" for n in range(SEGMENTS)] * len(recordings))
    number = pa.array(np.tile(np.arange(SEGMENTS), len(recordings)))
    key = pc.binary_join_element_wise(recording, numbers, "-")
    shard = pa.array(shards).take(pa.array(place))
    sha256 = pa.array([rng.bytes(32).hex() for _ in range(len(recordings))])
    own = {"columns": pa.repeat(" ".join(columns), count), "shard": shard, "key": key}
    own |= {"recording": recording, "index": number, "samples": stats["samples"]}
    own |= {name: stats[name] for name in stats.column_names}
    bits = rng.bytes(24 * count).hex()  # no two alike
    prints = [bits[48 * n : 48 * n + 48] if n % SEGMENTS < 4 else None for n in range(count)]
    own["fingerprint"] = pa.array(prints, pa.string())
    own["source_sha256"] = sha256.take(pa.array(np.repeat(np.arange(len(recordings)), SEGMENTS)))
    segments = pa.table(own)
    begin = np.concatenate([[0], np.cumsum(sizes)])
    within = np.arange(count) - np.repeat(begin[:-1], sizes)
    index = {
        name: _index(name, member, size, segments, within)
        for name, (member, size) in zip(
            columns,
            (("wav", 1_440_044), ("codes.npy", 36_128), ("cqt.npy", 1_512_128)),
            strict=True,
        )
    }
    about = _shards(rng, columns, shards, sizes)
    sums = {
        columns[1]: {"codes": rng.integers(900, 1100, (8, 1024)).astype(float)},
        columns[2]: {"cqt": rng.uniform(1, 9, (2, 336))},
    }
    found = {}
    for n, name in enumerate(shards):
        one = slice(int(begin[n]), int(sizes[n]))
        each = pa.concat_tables([table.slice(one.start, one.stop) for table in index.values()])
        found[name] = Rows(
            each, segments.slice(one.start, one.stop), about.slice(n * len(columns), len(columns)), sums
        )
    return found


def _index(name: str, member: str, size: int, segments: pa.Table, within: np.ndarray) -> pa.Table:
    offset = 512 + within * (size + 1536) // 512 * 512
    own = {field: segments[field] for field in ("shard", "key", "recording", "start", "samples", "frames")}
    own |= {"column": pa.repeat(name, len(within)), "member": pa.repeat(member, len(within))}
    own |= {"offset": offset, "size": np.full(len(within), size), "data_offset": offset + 128}
    return pa.table(
        [
            pa.array(own[f.name], f.type) if isinstance(own[f.name], np.ndarray) else own[f.name]
            for f in INDEX_ROWS
        ],
        schema=INDEX_ROWS,
    )


def _shards(
    rng: np.random.Generator, columns: tuple[str, ...], shards: list[str], sizes: np.ndarray
) -> pa.Table:
    facts = json.dumps({"machine": {"cpu": "x86_64 AVX512"}})
    found = []
    for shard, segments in zip(shards, sizes.tolist(), strict=True):
        for name, size in zip(columns, (1_440_000, 36_000, 1_512_000), strict=True):
            found.append(
                {"shard": shard, "column": name, "inputs": segments // SEGMENTS, "kept": segments // SEGMENTS}
                | {"rejected": 0, "segments": segments, "samples": segments * 720_000}
                | {"frames": segments * 2250, "bytes": segments * size, "sha256": rng.bytes(32).hex()}
                | {"device": "cpu", "host": f"node{rng.integers(100)}", "started": 1.7e9 + rng.random() * 1e6}
                | {"wall_s": 18 + 4 * rng.random(), "busy_s": 15 + rng.random(), "facts": facts}
                | {"hours": segments / 120, "times_real_time": 180 + 40 * rng.random(), "rejects": "{}"}
            )
    return pa.Table.from_pylist(found, SHARDS)
