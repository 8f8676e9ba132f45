"""A chain of three stages that do nothing: what a shard costs beside the work on it."""

import os
import time
from dataclasses import dataclass

from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from stages.label.base import Needs
from tests.bench.measure import CORES, Row, span


@dataclass(frozen=True)
class Nothing:
    """Opens as, and is, a worker that does nothing."""

    name: str

    def __call__(self, shard: str | None = None) -> "Nothing | dict":
        return self if shard is None else {"shard": shard, "stage": self.name, "status": "finished"}


def measure(shards: int) -> list[Row]:
    events = 0

    def count(event: dict) -> None:
        nonlocal events
        events += 1

    os.environ.pop("RAY_ADDRESS", None)
    with session() as here:
        links = [StageSpec(name, Nothing(name), Needs(cpus=1)) for name in ("one", "two", "three")]
        begun, first_s = time.perf_counter(), 0.0
        with span(sampled=True) as whole:
            for row in run_chain(links, [f"shard-{n:06d}" for n in range(shards)], here, 3, count):
                assert not row.get("failed"), row
                first_s = first_s or time.perf_counter() - begun
        took_ms = whole.wall_s / shards * 1000
    assert events == 6 * shards, events
    idle_ms = (whole.wall_s - whole.others_s / CORES) / shards * 1000
    return [
        Row(
            f"three stages that do nothing, {shards:,} shards",
            f"{took_ms:.1f} ms a shard, without what others took {idle_ms:.1f} ms (first row after "
            f"{first_s:.1f} s, then {(whole.wall_s - first_s) / shards * 1000:.1f} ms; "
            f"{whole.cpu_s / shards * 1000:.1f} ms CPU; {whole.text()})",
            "< 25 ms a shard",
            took_ms < 25,
        )
    ]
