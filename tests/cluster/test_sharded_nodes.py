"""A real cluster that gains and loses nodes while shards go through a chain."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import ray

from cluster import chain, sharded
from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from cluster.simulate import simulated
from stages.label.base import Needs


@dataclass(frozen=True)
class Slow:
    """Tells the node it runs on, and waits at shard `waits` until a file is there."""

    stage: str
    waits: str | None = None
    until: str = ""

    def __call__(self) -> Callable[[str], dict]:
        return self.run

    def run(self, shard: str) -> dict:
        while shard == self.waits and not os.path.exists(self.until):
            time.sleep(0.05)
        here = ray.get_runtime_context().get_node_id()
        return {"shard": shard, "stage": self.stage, "status": "finished", "node": here}


@ray.remote(num_cpus=2)
class Other:
    """Somebody else's job, which has all CPUs of a node."""

    def here(self) -> str:
        return ray.get_runtime_context().get_node_id()


@pytest.mark.timeout(180)
def test_a_shard_does_not_wait_for_a_node_whose_cpus_others_hold(monkeypatch):
    monkeypatch.setattr(chain, "LOOK_S", 0.5)
    monkeypatch.setattr(sharded, "LOOK_S", 0.5)
    monkeypatch.setattr(sharded, "READY_S", 3.0)
    with simulated(2, 2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with session() as started:
            other = Other.remote()
            taken, events = ray.get(other.here.remote()), []
            shards = [f"s{i}" for i in range(4)]
            rows = list(
                run_chain([StageSpec("one", Slow("one"), Needs(1))], shards, started, 1, events.append)
            )
    assert [row["one"] for row in rows] == ["finished"] * 4
    assert taken not in {e["node"] for e in events if e["event"] == "end"}
    assert {e["stage"] for e in events if e["event"] == "crowded"} == {"one"}
    assert {e["error"] for e in events if e["event"] == "again"} == {"others hold its node"}


@pytest.fixture
def grown(monkeypatch):
    """A cluster of one node without a GPU, and a session on it."""
    with simulated(1, 2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with session() as started:
            yield cluster, started


def test_a_run_uses_nodes_that_join_and_outlives_those_that_go(grown, tmp_path, monkeypatch):
    """It begins without the GPU that its second stage needs. The node that brings one is lost with a shard
    under way; another one comes."""
    cluster, started = grown
    monkeypatch.setattr(chain, "LOOK_S", 0.5)
    monkeypatch.setattr(sharded, "LOOK_S", 0.5)
    checked, events, until = [], [], tmp_path / "until"
    session = started._replace(check=lambda node: checked.append(node["NodeID"]) or "")
    links = [
        StageSpec("one", Slow("one"), Needs(1)),
        StageSpec("two", Slow("two", "s1", str(until)), Needs(1, gpus=1)),
    ]
    assert session.grows and session.gpus == 0
    gpu_nodes = []

    def on_event(event):
        events.append(event)
        ends = [e for e in events if e["event"] == "end" and e["stage"] == "one"]
        if not gpu_nodes and len(ends) == 3:  # all waits for the GPU
            gpu_nodes.append(cluster.add_node(num_cpus=2, num_gpus=1))
        begun = [e for e in events if e["event"] == "begin" and (e["stage"], e["shard"]) == ("two", "s1")]
        if len(gpu_nodes) == 1 and begun:
            cluster.remove_node(gpu_nodes[0], allow_graceful=False)
            gpu_nodes.append(cluster.add_node(num_cpus=2, num_gpus=1))

        if event["event"] == "again":
            until.touch()

    rows = list(run_chain(links, ["s0", "s1", "s2"], session, 1, on_event))
    assert [row["two"] for row in rows] == ["finished"] * 3
    assert "its node was lost" in {e["error"] for e in events if e["event"] == "again"}
    assert [e["event"] for e in events if e["event"].startswith("node-")].count("node-joined") == 2
    assert len(checked) == 2
    two = {e["shard"]: e["node"] for e in events if e["event"] == "end" and e["stage"] == "two"}
    assert two["s1"] == checked[1]
