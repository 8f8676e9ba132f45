"""What the driver of a run costs at a lab's scale: `make bench-scale`, 160,000 shards of 15 recordings.

The catalogue is synthetic, the columns' files are empty, and the workers sleep: what is measured is the plan,
what the driver holds of it, how long it takes to see what is finished, and what a shard costs on a cluster of
simulated nodes, of which one joins late and one is lost.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
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
        seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{what:44} {seconds:7.1f} s  peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before)  {said}",
            flush=True,
        )

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    process.join()
    assert process.exitcode == 0


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_parquet(folder / "catalog.parquet", CATALOG, batches(asked.shards * EACH))
        measured("plan, from nothing", lambda: planned(folder))
        measured("the driver's hold of the plan", lambda: held(folder))
        measured("files of a column, and one listing", lambda: listed(folder, asked.shards))
    print(scheduled(asked.scheduled))


if __name__ == "__main__":
    main()
