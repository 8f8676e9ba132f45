"""Run one ShardWorker in this process, killed by SIGKILL at the n-th step that touches the disk.

`python -m tests.chaos.dying_worker JOB.pickle SHARD N`: steps are the write of a sample, and before
and after each file gets its real name. Without a kill it ends with code 0.
"""

import os
import pickle
import signal
import sys
from pathlib import Path

from stages.label.shard import ShardWorker
from stages.shards.column import ColumnWriter
from stages.shards.storage import Storage


def main() -> None:
    job, shard, left = pickle.loads(Path(sys.argv[1]).read_bytes()), sys.argv[2], [int(sys.argv[3])]

    def step() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            step()
            result = real(*args, **kwargs)
            step()
            return result

        setattr(owner, name, wrapped)

    worker = ShardWorker(job)
    stepping(Storage, "_publish")
    stepping(ColumnWriter, "_member")
    row = worker(shard)
    assert row["status"] in ("finished", "skipped"), row
    print(1000 - left[0] if int(sys.argv[3]) == 1000 else row["status"])


if __name__ == "__main__":
    main()
