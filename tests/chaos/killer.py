"""Kills processes of a run at a write that they ask an S3 server for, before the server has done it."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable

import psutil

from tests.chaos.processes import descendants, kill, speaker

WRITES = ("PUT", "POST", "DELETE")
LOCK = "run.lock"  # the driver's beat, at any time


def step(method: str, name: str) -> str:
    """What a write is of, whatever shard, recipe and part of a table: `put audio/json`, `delete
    tables/index`."""
    folder, _, file = name.rpartition("/")
    ending = re.sub(r"^[^.]*\.", "", file)
    if folder.startswith("columns/"):
        where = f"{folder.removeprefix('columns/').partition('-')[0]}/{ending}"
    elif folder.startswith(("tables/", "audited", "log")):
        where = folder if folder.startswith("tables/") else folder.partition("/")[0]
    elif folder:
        where = f"{folder}/{ending}"
    else:
        where = re.sub(r"-\w+$", "", file)
    return f"{method.lower()} {where}"


class Killer:
    """`before` of `object_store.Faults`. `wanted` says whom to kill, if anybody, at a step that this process
    is about to make: driver, worker (itself), or what else `means` has a way for."""

    def __init__(self, root: str, wanted: Callable[["Killer", str, str], str | None]):
        self.root, self.wanted, self.means = f"/{root}/", wanted, {"driver": self._driver, "worker": kill}
        self.done: Counter[tuple[str, str]] = Counter()  # (whom, step)
        self._lock, self._run = threading.Lock(), None

    def watch(self, run: psutil.Popen | None, below: Iterable[int] = ()) -> None:
        """A driver, and processes other than it whose descendants may be its workers."""
        with self._lock:
            self._run, self._roots = run, [*below] or [run.pid] if run else []

    def count(self, whom: str) -> int:
        return sum(count for (who, _), count in self.done.items() if who == whom)

    def __call__(self, method: str, path: str, port: str) -> None:
        if method not in WRITES or not path.startswith(self.root) or path.endswith(LOCK):
            return
        with self._lock:
            if self._run is None or self._run.poll() is not None:
                return
            below = (pid for root in self._roots for pid in descendants(root))
            pid, now = speaker(int(port), (self._run.pid, *below)), step(method, path.removeprefix(self.root))
            who = "driver" if pid == self._run.pid else "worker"
            if pid and (whom := self.wanted(self, who, now)):
                self.done[whom, now] += bool(self.means[whom](pid))

    def _driver(self, _: int) -> bool:
        killed = kill(self._run.pid)
        self._run = None
        return killed
