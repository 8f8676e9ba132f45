"""How long `overtone stats` takes on a large OUT, and how much memory: `python -m tests.bench.bench_stats [SHARDS]`.

The OUT is synthetic, its tables as large as those of 50,000 shards of an hour: six million segments. The
page is made without the listening table, whose tars are not there; that costs the same at any size.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.pipeline.report import synthetic


def main() -> None:
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    with tempfile.TemporaryDirectory(prefix="overtone-") as folder:
        out = synthetic.out(Path(folder) / "out", shards, per_shard=120, codes=1024, levels=8)
        size = sum(p.stat().st_size for p in out.glob("*.parquet"))
        print(f"{shards:,} shards, {shards * 120:,} segments, tables of {size / 2**20:,.0f} MiB")
        for arguments in (["--no-page"], ["--json"], ["--no-page", "--where", "rms_db < -17.99"], []):
            started = time.monotonic()
            subprocess.run([sys.executable, "-m", "pipeline", "stats", str(out), *arguments], check=True, stdout=subprocess.DEVNULL)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"stats OUT {' '.join(arguments):32} {time.monotonic() - started:6.1f} s; peak so far {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
