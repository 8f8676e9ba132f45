"""An S3 server in a process of its own, for benchmarks: moto, with faults, and with the columns of a local
OUT, which it lists but does not hold."""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Iterator

from tests.object_store import Faults, Listed, served

BUCKET, SHARE, LATE_S = "bench", 0.05, 2.0
LIST_S = 0.1  # of a store, for a page of a thousand keys
TOPS = ("columns", "audited")


@contextlib.contextmanager
def store(share: float = 0.0, out: str | None = None) -> Iterator[list[int]]:
    """What it has counted when the block has ended: requests, refused, late."""
    here, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, share, out), daemon=True
    )
    process.start()
    before, counts = dict(os.environ), []
    os.environ |= here.recv()
    try:
        yield counts
        here.send(None)
        counts += here.recv()
    finally:
        process.kill()
        os.environ.clear()
        os.environ |= before


def _serve(pipe, share: float, out: str | None) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    faults, around = Faults(share, late_s=LATE_S), None
    if out:
        places = [f"{top}/{name}" for top in TOPS for name in os.listdir(f"{out}/{top}")]
        keys = sorted(f"out/{place}/{name}" for place in places for name in os.listdir(f"{out}/{place}"))
        around = Listed(keys, LIST_S).before(*(f"out/{top}/" for top in TOPS))
    with served(BUCKET, faults=faults, around=around) as environment:
        pipe.send(environment)
        pipe.recv()
        pipe.send([sum(faults.seen.values()), faults.refused, faults.late])
