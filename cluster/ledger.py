"""What a function on the cluster tells while it works. A module of its own, which imports little."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_S = 0.5  # a worker's report arrives within it


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Ledger:
    """Carries events from a function on the cluster to its driver."""

    def __init__(self):
        self.events: list[dict] = []

    def add(self, event: dict) -> None:
        self.events.append(event)

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
