"""What the driver of a run costs at a lab's scale: `make bench-scale`, 160,000 shards of 15 recordings.

Files to be scanned are keys of a store that only lists. Catalogue, statistics and tables are synthetic, of
the size of real ones (`scale_out.py`); the columns' files are empty. On them run the real commands. Stages
that sleep give what a shard costs on a cluster of simulated nodes, of which one joins late and one is lost,
without a store and with one that fails.
"""

import argparse
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from stages.label import audit, gathering
from stages.shards import catalog, parts, record
from stages.shards.storage import Storage
from tests.bench import scale_scan
from tests.bench.measure import ROOT, machine
from tests.bench.scale_nodes import scheduled
from tests.bench.scale_out import Made
from tests.bench.scale_store import BUCKET, store

MANY = 2000  # shards whose rows are looked up
# The command on a disk that has room for what it would write.
LABELS = """
import sys
from pipeline.cli import main
from stages.shards.storage import Storage
Storage.free_bytes = lambda self: None
sys.exit(main(sys.argv[1:]))
"""


def shown(what: str, seconds: float, usage: resource.struct_rusage, said: str) -> None:
    cpu_s, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20
    print(f"{what:52} {seconds:6.1f} s  CPU {cpu_s:6.1f} s  peak {peak:4.2f} GiB  {said}", flush=True)


def measured(what: str, work: Callable[[], str]) -> None:
    """In a process of its own, whose peak memory is its own."""

    def inside() -> None:
        begun = time.perf_counter()
        said = work()
        shown(what, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF), said)

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    process.join()
    assert process.exitcode == 0


def command(*arguments: str) -> None:
    """One of the real commands, to its end."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, stdout=subprocess.PIPE
    )
    said = process.stdout.read().decode().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    what = " ".join(argument for argument in arguments if "/" not in argument)
    shown(f"overtone {what}", time.perf_counter() - begun, usage, said[0].rpartition("/")[2])


def restarted(what: str, config: Path, out: Storage, *options: str) -> None:
    """The real command until its first shard begins and its log says so; then SIGKILL."""
    argv = [sys.executable, "-c", LABELS, "labels", str(config), "--shards", "0/1", *options]
    begun, events = time.time(), {}
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while "shard-begin" not in events:
        assert process.poll() is None, f"{argv} ended"
        time.sleep(0.1)
        for event in logged(out):
            if event["time"] >= begun:
                events.setdefault(event["event"], event)
    process.send_signal(signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = -signal.SIGKILL
    said = f"to the first shard's begin; {events['stages']['totals']['decode']:,} to be done, then SIGKILL"
    shown(what, events["shard-begin"]["started"] - begun, usage, said)


def logged(out: Storage) -> Iterator[dict]:
    names = [f"log/{name}" for name in sorted(out.names("log"))] if not out.is_local else ["log.jsonl"]
    for name in filter(out.exists, names):
        yield from (json.loads(line) for line in out.read(name).splitlines(True) if line.endswith(b"\n"))


def on_store(made: Made) -> None:
    """The same OUT on a store that lists the columns' files, and holds what a run reads before it begins."""
    with store(out=str(made.out.local(""))) as counts:
        out, config = Storage(f"s3://{BUCKET}/out"), made.folder / "store.yaml"
        config.write_text(made.config.read_text().replace(made.out.root, out.root))
        for name in ("catalog.parquet", "plan.parquet", "recipe.yaml"):
            out.write(name, made.out.read(name))
        for part in parts.added(made.out):
            out.write(parts.file("shards", part), made.out.read(parts.file("shards", part)))
        for what in ("labels on S3 at half of its shards, on Ray", "the same after SIGKILL, on Ray"):
            restarted(what, config, out)
    print(f"{'':52} {counts[0]:,} requests of both together; 0.1 s a page of a listing")


def held(made: Made) -> str:
    rows = catalog.ShardRows(made.out.local("plan.parquet"))
    names = list(rows.slices)
    begun = time.perf_counter()
    some = names[:: max(1, len(names) // MANY)]
    for name in some:
        rows(name)
    return f"{(time.perf_counter() - begun) / len(some) * 1000:.2f} ms for a shard's rows"


def grown(made: Made, first: int, last: int) -> str:
    """Finished shards more: their files, and their rows in parts."""
    planned = catalog.ShardRows(made.out.local("plan.parquet"))
    shards, live = list(planned.slices)[first:last], planned.recordings
    begun = time.perf_counter()
    made.files(shards)
    files_s, took = time.perf_counter() - begun, []
    for rows in made.parts(planned, shards):
        begun = time.process_time()
        gathering.add(made.out, rows, live, {})
        took.append(time.process_time() - begun)
    each = f"a part {sum(took) / len(took):.2f} CPU-s, the slowest {max(took):.2f}"
    return f"{len(took)} parts: {each}; {size(made, 'tables/*/*.parquet')}; files made in {files_s:.0f} s"


def size(made: Made, pattern: str) -> str:
    return f"{sum(p.stat().st_size for p in made.out.local('').glob(pattern)) / 2**30:.2f} GiB"


def listed(made: Made) -> str:
    columns = made.columns()
    done = [record.finished(made.out, name) for name in columns]
    return f"{len(set.intersection(*done) & audit.audited(made.out, columns)):,} finished shards"


def read(made: Made) -> str:
    table = parts.read(made.out, "shards", ["shard", "column", "hours"])
    return f"{table.num_rows:,} rows, {len(gathering.gathered(made.out, made.columns())):,} shards"


def ungathered(made: Made) -> str:
    plan = catalog.live(
        catalog.read_plan(made.out.local("plan.parquet"), ["recording", "shard", "tombstone"])
    )
    found, stale = gathering.ungathered(made.out, made.columns(), plan, pa.array([], pa.string()))
    return f"{len(found)} shards lack rows, stale: {stale}"


def sources(made: Made) -> str:
    find = gathering.sources(made.out)
    return f"of one that is not there: {find('0')}"


def compacted(made: Made) -> str:
    live = catalog.ShardRows(made.out.local("plan.parquet")).recordings
    assert gathering.due(made.out, whole=True)
    gathering.compact(made.out, live)
    return size(made, "*.parquet")


def on_out(made: Made, shards: int) -> None:
    measured("plan, from nothing", lambda: made.plan(shards))
    measured("the driver's hold of the plan", lambda: held(made))
    measured("half of the shards finished: files, tables' parts", lambda: grown(made, 0, shards // 2))
    restarted("labels at half of its shards, on Ray", made.config, made.out)
    restarted("the same after SIGKILL, on Ray", made.config, made.out)
    restarted("the same after SIGKILL, in processes", made.config, made.out, "--plain")
    on_store(made)
    measured("the other half", lambda: grown(made, shards // 2, shards * 2))
    measured("listings of three columns and the audit's notes", lambda: listed(made))
    reading(made)
    measured("tables put together", lambda: compacted(made))
    reading(made)


def reading(made: Made) -> None:
    measured("parts.read of shards, and gathered", lambda: read(made))
    measured("ungathered", lambda: ungathered(made))
    measured("sources", lambda: sources(made))
    command("status", made.out.root)
    command("stats", made.out.root, "--no-page")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scanned", type=int, default=2_400_000, help="files")
    parser.add_argument("--shards", type=int, default=160_000)
    parser.add_argument("--scheduled", type=int, default=4000, help="shards through the simulated cluster")
    parser.add_argument("--stored", type=int, default=1000, help="the same, writing to a store that fails")
    asked = parser.parse_args()
    print(machine())
    if asked.scanned:
        scale_scan.measure(measured, asked.scanned)
    with tempfile.TemporaryDirectory() as name:
        if asked.shards:
            on_out(Made(Path(name)), asked.shards)
    if asked.scheduled:
        print(scheduled(asked.scheduled))
    if asked.stored:
        print(scheduled(asked.stored, stored=True))


if __name__ == "__main__":
    main()
