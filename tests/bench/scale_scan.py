"""The scan at a lab's scale: a store that only lists, and headers of no time."""

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stages.shards.storage import Storage
from tests.object_store import Listed


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
def listing(keys: Keys, latency_s: float = 0.0) -> Iterator[None]:
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


def measure(measured: Callable[[str, Callable[[], str]], None], recordings: int) -> None:
    with listing(Keys(recordings // 10, 48), 0.05):
        for threads in (1, 16):
            measured("48 folders on a store of 50 ms", partial(listed_s3, threads))
    with listing(Keys(recordings)), tempfile.TemporaryDirectory() as name:
        measured("scan of one flat prefix, headers of no time", lambda: scanned(Path(name)))
