"""How soon a run with many finished shards starts working: from the command's start to the first shard's
begin.

A small run is made for real; then OUT is grown by synthetic finished shards: rows copied in every table,
empty files of the right names in every column, and one tiny audio file a recording, which the scan has to
find unchanged.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile

from stages.label.plan import shard_name
from stages.shards.catalog import CATALOG, PLAN, write_parquet
from tests.bench.measure import ROOT, Row, span
from tests.conftest import SMALL

KINDS = ("tar", "json", "index.parquet", "stats.parquet")


def excerpts(folder: Path, number: int, start_s: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, source in enumerate(sorted((ROOT / "examples" / "quickstart").glob("*.ogg"))[:number]):
        rate = soundfile.info(source).samplerate
        wave, _ = soundfile.read(source, start=int(start_s * rate), frames=12 * rate)
        soundfile.write(folder / f"{start_s:g} {n}.wav", wave, rate)


def grow(out: Path, music: Path, shards: int, each: int) -> None:
    """Add finished shards of `each` recordings to a finished OUT."""
    ids = [f"{n:016x}" for n in range(shards * each)]
    names = [shard_name([(i, 0) for i in ids[s * each : (s + 1) * each]]) for s in range(shards)]
    paths = []
    for n in range(len(ids)):
        folder = music / "synthetic" / f"{n // 1000:04d}"
        if n % 1000 == 0:
            folder.mkdir(parents=True)
        paths.append(str(folder / f"{n:07d} a title of some length.wav"))
        Path(paths[-1]).write_bytes(b"RIFF")
    changed = {
        "recording": ids,
        "path": paths,
        "path_bytes": [p.encode() for p in paths],
        "name_bytes": [os.path.relpath(p, music).encode() for p in paths],
        "size": [4] * len(ids),
        "mtime_ns": [os.stat(p).st_mtime_ns for p in paths],
        "quick": [i * 4 for i in ids],
        "duration_s": [3600 / each] * len(ids),
        "split": ["train"] * len(ids),
        "shard": [n for n in names for _ in range(each)],
    }
    known = pq.read_table(out / "catalog.parquet")
    grown = pa.concat_tables([known, repeated(known, len(ids), changed)])
    write_parquet(out / "catalog.parquet", CATALOG, grown.sort_by("path_bytes").to_batches())
    known = pq.read_table(out / "plan.parquet")
    changed["order"] = [pc.max(known["order"]).as_py() + 1 + n for n in range(len(ids))]
    write_parquet(
        out / "plan.parquet", PLAN, pa.concat_tables([known, repeated(known, len(ids), changed)]).to_batches()
    )
    columns = sorted(os.listdir(out / "columns"))
    for name in columns:
        for shard in names:
            for kind in KINDS:
                os.close(os.open(out / "columns" / name / f"{shard}.{kind}", os.O_CREAT | os.O_WRONLY, 0o644))
    for table in ("shards", "index", "segments"):
        known, parts = pq.read_table(out / f"{table}.parquet"), []
        changed = {"shard": names, "recording": ids[::each], "key": [f"{i}-00000" for i in ids[::each]]}
        for name in columns if table != "segments" else [None]:
            one = known if name is None else known.filter(pc.equal(known["column"], name))
            parts.append(repeated(one, shards, changed))
        pq.write_table(pa.concat_tables([known, *parts]), out / f"{table}.parquet", compression="zstd")


def repeated(table: pa.Table, times: int, changed: dict[str, list]) -> pa.Table:
    """The table's first row, many times, with some columns changed."""
    columns = [
        pa.array(changed[f.name], f.type)
        if f.name in changed
        else pa.repeat(pa.scalar(table[f.name][0].as_py(), f.type), times)
        for f in table.schema
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def measure(folder: Path, shards: int, each: int) -> list[Row]:
    out, music, config = folder / "out", folder / "music", folder / "config.yaml"
    excerpts(music / "real", 5, 10)
    config.write_text(SMALL.format(audio=json.dumps(str(music)), out=json.dumps(str(out))))
    command = [sys.executable, "-m", "pipeline", "labels", str(config)]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    grow(out, music, shards, each)
    excerpts(music / "real", 3, 30)
    seen = (out / "log.jsonl").stat().st_size
    begun = time.time()
    with span(sampled=True) as whole:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr}{done.stdout}"[-2000:])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_bytes()[seen:].splitlines()]
    first = next(line for line in lines if line["event"] == "shard-begin")
    first_s = first.get("started", first["time"]) - begun
    shown = " → ".join(
        f"{line['event']} {line['time'] - begun:.1f}"
        for line in lines
        if not line["event"].startswith("shard-")
    )
    return [
        Row(
            f"resume, {shards:,} finished shards of {each} recordings",
            f"first shard begins after {first_s:.1f} s ({shown}; {whole.text()})",
            "< 15 s",
            first_s < 15,
        )
    ]
