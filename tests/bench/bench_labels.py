"""`make bench-labels`: one table, one row per promise about the speed of labelling, measured here and now.

    python -m tests.bench.bench_labels [--part decode|scheduling|resume|whole|today|plan …] [--small]

Times are of this machine as busy as it is; what other processes took is said beside them. Rows of
one comparison are measured one after the other, or interleaved, on the same cores.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import ROOT, Row, machine

GIB_LIMIT, PLAN_LIMIT_S = 4.0, 300.0


def planning(recordings: int) -> list[Row]:
    done = subprocess.run(
        [sys.executable, "tests/bench/bench_plan.py", str(recordings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = re.findall(r"([\d.]+) s +([\d.]+) GiB", done.stdout)
    if done.returncode or len(found) != 2:
        raise RuntimeError(f"bench_plan: {done.stderr[-2000:]}{done.stdout}")
    rows = []
    for what, (seconds, gib) in zip(("planned anew", "planned again with 1 % more"), found, strict=True):
        holds = float(seconds) < PLAN_LIMIT_S and float(gib) < GIB_LIMIT
        rows.append(
            Row(f"{recordings:,} recordings {what}", f"{seconds} s, {gib} GiB", "< 5 min, < 4 GiB", holds)
        )
    return rows


def parts(asked: argparse.Namespace, folder: Path) -> dict[str, Callable[[], list[Row]]]:
    from tests.bench import part_decode, part_overhead, part_resume, part_scheduling, part_whole

    return {
        "decode": lambda: part_decode.measure(folder, asked.minutes, asked.rounds),
        "scheduling": lambda: part_scheduling.measure(asked.shards),
        "resume": lambda: part_resume.measure(folder, asked.finished, asked.recordings),
        "whole": lambda: part_whole.against_stages(
            asked.music, folder, asked.hours, asked.shard_minutes, asked.teacher
        ),
        "overhead": lambda: part_overhead.measure(asked.music, folder, asked.sizes, asked.shard_minutes),
        "today": lambda: part_whole.against_today(folder, asked.minutes),
        "plan": lambda: planning(asked.plan),
    }


def measured(asked: argparse.Namespace) -> Iterator[Row]:
    for name in asked.part:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"overtone-bench-{name}-", dir=asked.scratch) as folder:
            try:
                yield from parts(asked, Path(folder))[name]()
            # one part's failure is a row, the others go on
            except (ValueError, RuntimeError, OSError) as error:
                yield Row(name, f"not measured: {error}", "to be measured", None)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)


NAMES = ("decode", "scheduling", "resume", "whole", "overhead", "today", "plan")
SMALL = {
    "shards": 400,
    "finished": 2_000,
    "hours": 0.25,
    "sizes": [0.1, 0.2],
    "shard_minutes": 2.0,
    "minutes": 2.0,
    "rounds": 2,
    "plan": 50_000,
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    top = argparse.ArgumentParser(
        prog="python -m tests.bench.bench_labels", description=__doc__.split("\n")[0]
    )
    top.add_argument("--part", nargs="+", choices=NAMES, default=list(NAMES))
    top.add_argument(
        "--music", type=Path, default=ROOT / "music", help="the larger corpus, as `make music` lays it out"
    )
    top.add_argument("--hours", type=float, default=2.0, help="of it, for `whole`")
    top.add_argument(
        "--sizes", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="hours of it, for `overhead`"
    )
    top.add_argument("--shard-minutes", type=float, default=5.0, help="for `whole` and `overhead`")
    top.add_argument("--teacher", choices=("mel_rvq", "encodec"), default="mel_rvq", help="for `whole`")
    top.add_argument(
        "--minutes", type=float, default=5.0, help="of audio, for `decode` (a format) and `today`"
    )
    top.add_argument("--rounds", type=int, default=5, help="for `decode`")
    top.add_argument("--shards", type=int, default=10_000, help="for `scheduling`")
    top.add_argument("--finished", type=int, default=50_000, help="shards, for `resume`")
    top.add_argument("--recordings", type=int, default=1, help="in each finished shard, for `resume`")
    top.add_argument("--plan", type=int, default=2_400_000, help="recordings, for `plan`")
    top.add_argument("--scratch", type=Path, help="folder for temporary files (default: the system's)")
    top.add_argument("--small", action="store_true", help="sizes that only show that it runs")
    if "--small" in (sys.argv[1:] if argv is None else argv):
        top.set_defaults(**SMALL)
    return top.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    asked = arguments(argv)
    table = Table(title=machine(), title_justify="left", show_lines=True)
    for title in ("promise", "measured", "target", ""):
        table.add_column(title, overflow="fold")
    missed = 0
    for row in measured(asked):
        missed += bool(row.target) and row.holds is not True
        table.add_row(
            row.claim,
            row.measured,
            row.target,
            {True: "holds", False: "MISSED", None: "?" if row.target else ""}[row.holds],
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
