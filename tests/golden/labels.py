"""Facts of the quickstart's ten minutes, labelled by the real command with a teacher that is not fitted.

A fitted teacher's weights differ between kinds of CPU, and so do the last bits of a Fourier transform:
digests are kept by CPU. `shards` is the same everywhere, `means` and `values` within what is said beside
their tolerances.
"""

import hashlib
import io
import platform
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

CONFIG, TEACHER = "configs/labels/quickstart.yaml", "recipe.codes={teacher: best_rq}"
COUNTS = ("inputs", "kept", "rejected", "segments", "samples", "frames", "bytes")
TOLERANCE = 1e-3  # relative, of a mean over all segments: on another CPU a code in a thousand may differ
VALUES = 75  # of each tar
OTHER_SAMPLES, OTHER_CODES = 2, 0.01  # units of int16; share of the codes that another CPU may find


def arguments(out: Path) -> list[str]:
    return ["labels", CONFIG, "--out", str(out), "--set", TEACHER]


def cpu() -> str:
    """What bytes of one software version may depend on: the maker, and the instructions torch uses."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    makers = [line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")]
    return f"{makers[0] if makers else platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def digests(out: Path) -> dict[str, str]:
    """sha256 of every tar by its path."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.glob("columns/*/*.tar"))
    }


def shards(out: Path) -> dict[str, dict[str, int]]:
    """Counts and bytes of every shard in every column."""
    rows = pq.read_table(out / "shards.parquet").to_pylist()
    return {f"{row['column']}/{row['shard']}": {name: row[name] for name in COUNTS} for row in rows}


def means(out: Path) -> dict[str, float]:
    """The mean over all segments of each statistic that is a number or a list of numbers."""
    table = pq.read_table(out / "segments.parquet")
    found = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            column = column.flatten()
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            found[name] = float(np.nanmean(column.to_numpy(zero_copy_only=False).astype(float)))
    return found


def values(out: Path) -> dict[str, list[float]]:
    """Some values of the first segment of every shard: int16 samples, codes, constant-Q magnitudes."""
    found: dict[str, list[float]] = {}
    for path in sorted(out.glob("columns/*/*.tar")):
        with tarfile.open(path) as tar:
            member = next(m for m in tar if not m.name.endswith(".json"))
            data = tar.extractfile(member).read()
        is_wav = member.name.endswith(".wav")
        array = np.frombuffer(data[44:], "<i2") if is_wav else np.load(io.BytesIO(data)).ravel()
        found[str(path.relative_to(out))] = array[:: array.size // VALUES + 1].tolist()
    return found


def differ(found: dict[str, list[float]], golden: dict[str, list[float]]) -> dict[str, float]:
    """Of each tar that is further from the golden values than another CPU would be: how far."""
    far = {}
    for name, own in found.items():
        own, known = np.array(own, float), np.array(golden[name], float)
        off = np.abs(own - known)
        if name.startswith("columns/codes"):
            share, allowed = np.mean(off > 0), OTHER_CODES
        elif name.startswith("columns/cqt"):
            share, allowed = off.max() / known.max(), TOLERANCE
        else:
            share, allowed = off.max(), OTHER_SAMPLES
        if not share <= allowed:
            far[name] = float(share)
    return far


def facts(out: Path) -> dict[str, Any]:
    return {
        "shards": shards(out),
        "means": means(out),
        "values": values(out),
        "sha256": {cpu(): digests(out)},
    }
