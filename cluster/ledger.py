"""Not in `sharded.py`, so that its process need not import Ray Data, which takes a second."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5  # a worker's report arrives within it


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Ledger:
    """Counts attempts, to give up a shard that kills its worker; carries events."""

    def __init__(self):
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.events: list[dict] = []

    def begin(self, stage: str, shard: str, host: str) -> int:
        now = time.time()
        self.events.append(dict(event="begin", stage=stage, shard=shard, host=host, started=now))
        self.attempts[stage, shard] += 1
        return self.attempts[stage, shard]

    def end(self, row: dict) -> None:
        # a later death of another shard in its block does not count
        self.attempts.pop((row.get("stage"), row.get("shard")), None)
        self.events.append({"event": "end", **row})

    def drain(self) -> list[dict]:
        events, self.events = self.events, []
        return events


def ledger_here() -> Any:
    """On the driver's own node, which the death of another does not end."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return Ledger.options(scheduling_strategy=here).remote()


@contextlib.contextmanager
def watching(ledger: Any, on_event: Callable[[dict], None]) -> Iterator[None]:
    """Poll in a thread: rows may be minutes apart, or too many for a call each."""
    stop, lock = threading.Event(), threading.Lock()

    def poll() -> None:
        with lock:
            try:
                events = ray.get(ledger.drain.remote(), timeout=30)
            except (ray.exceptions.RayError, ValueError):
                return  # the ledger restarts, or the session is closing
            for event in events:
                on_event(event)

    def loop() -> None:
        while not stop.wait(POLL_S):
            poll()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        poll()
