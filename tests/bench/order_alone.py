"""A process of its own for `bench_loader`: the whole order of one epoch, window by window; prints seconds,
samples, peak MiB.

python -m tests.bench.order_alone SAMPLES SAMPLES_OF_A_SHARD
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from stages.pretrain.data.order import Epoch, Shards

STRETCH = 65_536


def peak_mib() -> float:
    """Of this program alone: getrusage would count the process that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main(samples: int, shard_samples: int) -> None:
    shards = -(-samples // shard_samples)
    made = Shards(
        "0123456789abcdef" * 4, np.full(shards, shard_samples), np.zeros(shards, dtype=np.int64), (1.0,), 64
    )
    begun, order, seen = time.perf_counter(), Epoch(made, 0, 0), 0
    while seen < len(order):
        seen += len(order.take(seen, min(STRETCH, len(order) - seen))[0])
    found = {"seconds": time.perf_counter() - begun, "samples": seen, "mib": peak_mib()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
