"""How long `overtone stats` takes on a large OUT, and how much memory: `python -m tests.bench.bench_stats
[SHARDS]`.

The OUT is synthetic, its tables as large as those of 50,000 shards of an hour: six million segments. The
page is made without the listening table, whose tars are not there; that costs the same at any size.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.pipeline.report import synthetic


def main() -> None:
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory(prefix="overtone-") as folder:
        out = Path(folder) / "out"
        # In a process of its own: a child's peak memory is never reported below its parent's at the fork.
        sizes = {"per_shard": 120, "codes": 1024, "levels": 8}
        maker = multiprocessing.get_context("spawn").Process(
            target=synthetic.out, args=(out, shards), kwargs=sizes
        )
        maker.start()
        maker.join()
        size = sum(p.stat().st_size for p in out.glob("*.parquet"))
        print(f"{shards:,} shards, {shards * 120:,} segments, tables of {size / 2**20:,.0f} MiB")
        for arguments in (["--no-page"], ["--json"], ["--no-page", "--where", "rms_db < -17.99"], []):
            print(measured(out, arguments), flush=True)


def measured(out: Path, arguments: list[str]) -> str:
    """One run: until it says its first word, until it ends, and its own peak memory."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "stats", str(out), *arguments], stdout=subprocess.PIPE
    )
    process.stdout.read(1)
    answered = time.monotonic() - started
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    return (
        f"stats OUT {' '.join(arguments):32} answers after {answered:5.1f} s, ends after "
        f"{time.monotonic() - started:5.1f} s; peak {usage.ru_maxrss / 2**20:.2f} GiB"
    )


if __name__ == "__main__":
    main()
