"""Stages that sleep in proportion to what real ones cost, on a cluster of simulated nodes of which one joins
late and one is lost; `stored`: each writes an object to a store of which one request in twenty is refused or
answered late."""

import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass

from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from cluster.simulate import simulated
from stages.label.base import Needs
from stages.shards.storage import Storage
from tests.bench.scale_store import BUCKET, SHARE, store

# Of an hour of audio, divided by 4000: decode 11 s, codes 8, CQT 10, audit 0.4, on one core.
SLEEPS_S = {"decode": 0.003, "codes": 0.002, "cqt": 0.0025, "audit": 0.0001}


@dataclass(frozen=True)
class Sleeping:
    """Opens as, and is, a worker that sleeps, and writes where there is an OUT."""

    name: str
    seconds: float
    out: str = ""

    def __call__(self, shard: str | None = None, planned: object = None) -> "Sleeping | dict":
        if shard is None:
            return self
        time.sleep(self.seconds)
        row = {"shard": shard, "stage": self.name, "status": "finished"}
        if self.out:
            try:
                Storage(self.out).write(f"columns/{self.name}/{shard}.json", b"{}")
            except OSError as error:
                row |= {"status": "failed", "error": str(error), "transient": True}
        return row


def scheduled(shards: int, stored: bool = False) -> str:
    """On three simulated nodes of four CPUs each."""
    names, events = [f"s{n:012x}" for n in range(shards)], Counter()
    with store(SHARE) if stored else contextlib.nullcontext() as counts, simulated(2, 4) as cluster:
        out = f"s3://{BUCKET}/out" if stored else ""
        needs = Needs(1, 0, 0.1)
        specs = [StageSpec(name, Sleeping(name, s, out), needs, cpu_s=s) for name, s in SLEEPS_S.items()]
        os.environ["RAY_ADDRESS"] = cluster.address
        with session() as here:
            begun, first_s = time.perf_counter(), 0.0
            rows = run_chain(specs, names, here, on_event=lambda event: events.update([event["event"]]))
            for number, row in enumerate(rows):
                assert "failed" not in row, row
                first_s = first_s or time.perf_counter() - begun
                if number == shards // 4:
                    third = cluster.add_node(num_cpus=4)
                if number == 3 * shards // 4:
                    cluster.remove_node(third, allow_graceful=False)
            took = time.perf_counter() - begun - first_s
        if stored:
            held = [Storage(out).names(f"columns/{name}") for name in SLEEPS_S]
            assert all(len(found) == shards for found in held), "an object is missing"
    each = f"{shards:,} sleeping shards: {took / shards * 1000:.1f} ms a shard of four stages"
    again = f"a node joined, one was lost, {events['again']} tried again"
    said = f"{each} after the first row ({first_s:.1f} s), {again}"
    return said + (f"; of {counts[0]:,} requests {counts[1]:,} refused, {counts[2]:,} late" if stored else "")
