"""What the driver of a run costs at a lab's scale: `make bench-scale`, 160,000 shards of 15 recordings.

The store only lists, the catalogue is synthetic, the columns' files are empty, and the workers sleep: what is
measured is the scan without its headers, the plan, what the driver holds of it, how long it takes to see what
is finished, and what a shard costs on a cluster of simulated nodes, of which one joins late and one is lost.
"""

import argparse
import hashlib
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from cluster.simulate import simulated
from stages.label.base import Needs
from stages.shards import catalog, record
from stages.shards.catalog import CATALOG, write_parquet
from stages.shards.storage import Storage
from tests.bench.bench_plan import batches
from tests.bench.measure import machine
from tests.object_store import Listed

EACH = 15  # recordings of a shard


@dataclass(frozen=True)
class Sleeping:
    """Opens as, and is, a worker that sleeps."""

    name: str
    seconds: float

    def __call__(self, shard: str | None = None, planned: object = None) -> "Sleeping | dict":
        if shard is None:
            return self
        time.sleep(self.seconds)
        return {"shard": shard, "stage": self.name, "status": "finished"}


def measured(what: str, work: Callable[[], str]) -> None:
    """In a process of its own, whose peak memory is its own."""

    def inside() -> None:
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        said = work()
        seconds, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
        peak, own_s = used.ru_maxrss, used.ru_utime + used.ru_stime
        print(
            f"{what:44} {seconds:7.1f} s ({own_s:.1f} s CPU)  "
            f"peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before)  {said}",
            flush=True,
        )

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    process.join()
    assert process.exitcode == 0


class Keys(Sequence):
    """Of a flat prefix, or of as many folders."""

    def __init__(self, count: int, folders: int = 0):
        self.count, self.folders = count, folders

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> str:
        each = -(-self.count // max(1, self.folders))
        return f"music/{number // each:04}/{number:07}.flac" if self.folders else f"music/{number:07}.flac"


def serving(keys: Keys, latency_s: float, address: multiprocessing.Queue) -> None:
    with Listed(keys, latency_s).served() as environment:
        address.put(environment)
        time.sleep(3600)


@contextmanager
def store(keys: Keys, latency_s: float = 0.0) -> Iterator[None]:
    """Its server is a process of its own."""
    address = multiprocessing.Queue()
    server = multiprocessing.Process(target=serving, args=(keys, latency_s, address), daemon=True)
    server.start()
    os.environ |= address.get()
    yield
    server.kill()


def read(files: Iterable[tuple], workers: int) -> Iterator[tuple[tuple, dict]]:
    """Headers, of no time."""
    facts = {"container": "flac", "codec": "flac", "rate_hz": 44_100, "channels": 2, "duration_s": 240.0}
    for file in files:
        quick = hashlib.sha256(file[0]).hexdigest()
        yield file, facts | {"quick": quick, "duration_from": "header", "reason": None}


def scanned(folder: Path) -> str:
    """With its parts, and once more with nothing new."""
    from stages.label.scan.parts import Parts
    from stages.label.scan.scan import scan

    catalog, said = folder / "scanned.parquet", []
    for _ in range(2):
        begun = time.perf_counter()
        out = Parts(Storage(folder))
        summary = scan(["s3://b/music"], catalog, catalog, parts=out, probe_all=read)
        said.append(f"{time.perf_counter() - begun:.0f} s ({summary.unchanged:,} unchanged)")
        out.clear()
    return f"{summary.found:,} keys: {', then '.join(said)}"


def listed_s3(threads: int) -> str:
    from stages.label.scan import walking
    from stages.label.scan.listing import open_root

    walking.THREADS = threads
    count = sum(1 for _ in open_root("s3://b/music")())
    return f"{count:,} keys by {threads} threads"


def planned(folder: Path) -> str:
    from stages.label.plan import plan

    summary = plan(
        None, folder / "catalog.parquet", folder / "plan.parquet", shard_minutes=60, validation_share=0.02
    )
    return f"{summary.recordings:,} recordings, {summary.shards:,} shards, {summary.hours:,.0f} h"


def held(folder: Path) -> str:
    rows = catalog.ShardRows(folder / "plan.parquet")
    names = list(rows.slices)
    begun = time.perf_counter()
    some = names[:: max(1, len(names) // 2000)]
    for name in some:
        rows(name)
    return f"{(time.perf_counter() - begun) / len(some) * 1000:.2f} ms for a shard's rows"


def listed(folder: Path, shards: int) -> str:
    storage, column = Storage(folder), "codes-00000000"
    place = folder / "columns" / column
    place.mkdir(parents=True)
    for n in range(shards):
        for kind in ("json", "tar", "index.parquet", "stats.parquet", "sums.parquet"):
            (place / f"s{n:012x}.{kind}").touch()
    begun = time.perf_counter()
    done = record.finished(storage, column)
    return f"of which {time.perf_counter() - begun:.2f} s to see {len(done):,} finished shards"


def scheduled(shards: int) -> str:
    """On three simulated nodes of four CPUs each, one of which joins late, and one is lost."""
    seconds = {"decode": 0.004, "codes": 0.008, "cqt": 0.002, "audit": 0.001}
    specs = [StageSpec(name, Sleeping(name, s), Needs(1, 0, 0.1), cpu_s=s) for name, s in seconds.items()]
    with simulated(2, 4) as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address
        with session() as here:
            begun, first_s, lost = time.perf_counter(), 0.0, 0
            rows = run_chain(specs, [f"s{n:012x}" for n in range(shards)], here, on_event=lambda event: None)
            for number, row in enumerate(rows):
                assert "failed" not in row, row
                first_s = first_s or time.perf_counter() - begun
                if number == shards // 4:
                    third = cluster.add_node(num_cpus=4)
                if number == 3 * shards // 4:
                    cluster.remove_node(third, allow_graceful=False)
                    lost = 1
            took = time.perf_counter() - begun - first_s
    each = f"{took / shards * 1000:.1f} ms a shard of four stages"
    return f"{each} after the first row ({first_s:.1f} s), {lost} node lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, default=160_000)
    parser.add_argument(
        "--scheduled", type=int, default=4000, help="shards that go through the simulated cluster"
    )
    asked = parser.parse_args()
    print(machine())
    recordings = asked.shards * EACH
    with store(Keys(recordings // 10, 48), 0.05):
        for threads in (1, 16):
            measured("48 folders on a store of 50 ms", partial(listed_s3, threads))
    with store(Keys(recordings)), tempfile.TemporaryDirectory() as name:
        measured("scan of one flat prefix, headers of no time", lambda: scanned(Path(name)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(folder / "catalog.parquet", CATALOG, batches(recordings))
        measured("plan, from nothing", lambda: planned(folder))
        measured("the driver's hold of the plan", lambda: held(folder))
        measured("files of a column, and one listing", lambda: listed(folder, asked.shards))
    print(scheduled(asked.scheduled))


if __name__ == "__main__":
    main()
