"""`make bench-loader`: crops a second of one core against whole files and stock webdataset, and the order of
ten million samples.

    python -m tests.bench.bench_loader [--rounds 5] [--seconds 4] [--shards 6]

One process on one core makes micro-batches of 8 crops of 5 s (audio, 8 codes, 336 float16 CQT bins) in each
of the ways in turn; crops are counted against the process's own CPU seconds, so that what else the machine
does hardly shows, and figures are medians of the rounds. The files lie in memory: what is compared is the
work for a crop, not the disk.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tests.bench import loader_readers
from tests.bench.measure import Row, machine, run

SAMPLES = 10_000_000  # of the order
SHARD_SAMPLES = 720  # an hour's crops of 5 s
ORDER_MIB, FIRST_S, FILES_RATIO, WEBDATASET_RATIO = 300, 2.0, 30, 8


def rates(folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    """Crops a second of each way, one core, medians over the rounds."""
    from pipeline.merge import merge

    merge(str(folder / "out"), str(folder / "tars"))
    ways = {
        "files": loader_readers.whole_files(folder / "files"),
        "webdataset": loader_readers.stock_webdataset(folder / "tars"),
        "webdataset, 6 crops of each segment": loader_readers.stock_webdataset(folder / "tars", 6),
        "ours": loader_readers.ours(folder / "out", folder / "cache", mixture=0.0),
        "ours with mixture": loader_readers.ours(folder / "out", folder / "cache2"),
    }
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for name in ways:
        next(ways[name])
    for _ in range(rounds):
        for name, way in ways.items():
            made, begun = 0, time.process_time()
            while (passed := time.process_time() - begun) < seconds:
                made += next(way)
            seen[name].append(made / passed)
    return {name: statistics.median(values) for name, values in seen.items()}


def compared(folder: Path, rounds: int, seconds: float) -> Iterator[Row]:
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    found = rates(folder, rounds, seconds)
    others = (
        ("files", FILES_RATIO, "a"),
        ("webdataset", WEBDATASET_RATIO, "b"),
        ("webdataset, 6 crops of each segment", None, "b'"),
    )
    for name, ratio, letter in others:
        times = found["ours"] / found[name]
        target = f"≥ {ratio}×" if ratio else ""
        yield Row(
            f"loader against ({letter}) {name}",
            f"{times:.1f}× ({found['ours']:.0f} against {found[name]:.0f} crops/s a core)",
            target,
            times >= ratio if ratio else None,
        )
    yield Row(
        "the same with the in-batch mixture", f"{found['ours with mixture']:.0f} crops/s a core", "", None
    )


def first_batch(folder: str, at: float, workers: int) -> dict[str, float]:
    """In a process of its own: from a state to the first batch, index opened included."""
    from stages.pretrain.data.index import load
    from stages.pretrain.data.loader import Loader
    from stages.pretrain.data.masking import Masking
    from stages.pretrain.data.mixture import Mixture
    from stages.pretrain.data.settings import Data
    from stages.pretrain.data.state import State

    place = Path(folder)
    data = Data(corpora=(str(place / "wide"),), workers=workers)
    begun = time.perf_counter()
    pinned = load(next((place / "index").iterdir()), data.corpora)
    consumed = int(pinned.samples_per_epoch * at) // 64 * 64
    loader = Loader(pinned, data, Masking(), Mixture(), 374, loader_readers.MICRO)
    batch = next(loader.stream(State(pinned.fingerprint, 0, 64, consumed=consumed)))
    found = {
        "seconds": time.perf_counter() - begun,
        "samples": pinned.samples_per_epoch,
        "replaced": len(batch.replaced),
    }
    loader.close()
    return found


def widen(folder: Path) -> None:
    """An index of ten million samples: the real shards, each under a thousand names."""
    from stages.pretrain.data import index as store
    from stages.pretrain.data.pinning import pin
    from stages.pretrain.data.settings import Data

    real = pin(Data(corpora=(str(folder / "out"),), cache=str(folder / "cache")))
    times = -(-SAMPLES // real.samples_per_epoch)
    shards = len(real.shard_names)
    arrays = {
        name: np.concatenate([np.asarray(getattr(real, name))] * times) for name in [*store.ROWS, "key_R"]
    }
    arrays["shard_R"] = arrays["shard_R"] + np.repeat(np.arange(times) * shards, len(real.shard_R)).astype(
        np.int32
    )
    arrays["ends_R"] = np.cumsum(arrays["crops_R"], dtype=np.int64)
    arrays |= {
        name: np.concatenate([getattr(real, name)] * times) for name in store.PER_SHARD if name != "row_S"
    }
    arrays |= {
        "row_S": np.searchsorted(arrays["shard_R"], np.arange(times * shards + 1)),
        "valid_V": np.zeros(0, dtype=np.int64),
    }
    names = [f"{name}x{i:05d}" for i in range(times) for name in real.shard_names]
    for column in [p.name for p in (folder / "out" / "columns").iterdir()]:
        (folder / "wide" / "columns" / column).mkdir(parents=True)
        for name in names:
            os.symlink(
                folder / "out" / "columns" / column / f"{name.split('x')[0]}.tar",
                folder / "wide" / "columns" / column / f"{name}.tar",
            )
    fingerprint = "f" * 64
    facts = store.Facts(**vars(real.facts) | {"fingerprint": fingerprint, "shards": [names]})
    store.store(folder / "index" / fingerprint, facts, arrays)


def alone(folder: Path, at: float, workers: int) -> dict[str, float]:
    """`first_batch` in a process of its own."""
    return json.loads(run("tests.bench.bench_loader", "--first", folder, at, workers))


def ordered(folder: Path) -> Iterator[Row]:
    found = json.loads(run("tests.bench.order_alone", SAMPLES, SHARD_SAMPLES))
    yield Row(
        f"order of an epoch of {found['samples']:,} samples",
        f"{found['mib']:.0f} MiB, Python and numpy included; {found['seconds']:.1f} s",
        f"< {ORDER_MIB} MiB",
        found["mib"] < ORDER_MIB,
    )
    widen(folder)
    for workers in (0, 2):
        seen = [alone(folder, at, workers) for at in (0.0, 0.37, 0.999)]
        assert not any(s["replaced"] for s in seen)
        worst = max(s["seconds"] for s in seen)
        claim = f"state to first batch, anywhere in {seen[0]['samples']:,} samples, {workers} workers"
        yield Row(claim, f"{worst:.2f} s", f"< {FIRST_S:.0f} s", worst < FIRST_S)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one way in one round")
    parser.add_argument(
        "--shards",
        type=int,
        default=6,
        help="of 4 recordings of 3 minutes, 143 MB each with labels, twice on disk",
    )
    parser.add_argument("--scratch", help="folder for what is written; unset: the system's")
    parser.add_argument("--first", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.first:
        print(json.dumps(first_batch(asked.first[0], float(asked.first[1]), int(asked.first[2]))))
        return 0
    table = Table("claim", "measured", "target", "", title=machine())
    with tempfile.TemporaryDirectory(prefix="overtone-bench-loader-", dir=asked.scratch) as folder:
        loader_readers.write_corpus(Path(folder), asked.shards, 4, 6)
        rows = [*ordered(Path(folder)), *compared(Path(folder), asked.rounds, asked.seconds)]
    for row in rows:
        table.add_row(
            row.claim, row.measured, row.target, {True: "holds", False: "missed", None: ""}[row.holds]
        )
    Console(width=160).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
