"""Numbers of a run for Prometheus: what each event counts, and, where Ray exports them, that they are."""

import re
import time
import urllib.request
from collections import Counter
from importlib.util import find_spec

import pytest
import ray

from cluster import metrics
from cluster.metrics import Metrics
from cluster.session import session
from cluster.sharded import StageSpec, run_chain
from tests.cluster.test_sharded import Work

LINKS = [StageSpec("one", Work("one", deadly="s2")), StageSpec("two", Work("two"))]


class Kept:
    """A counter or gauge of Ray's that keeps its values."""

    values: dict[str, Counter] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple = ()):
        self.own, self.keys = self.values.setdefault(name, Counter()), tag_keys

    def set(self, value: float, tags: dict | None = None) -> None:
        assert (tags or {}).keys() == set(self.keys)
        self.own[tuple((tags or {}).values())] = value

    def inc(self, value: float, tags: dict) -> None:
        assert value > 0
        self.set(self.own[tuple(tags.values())] + value, tags)


def test_what_each_event_counts(monkeypatch):
    monkeypatch.setattr(Kept, "values", {})
    monkeypatch.setattr(metrics, "Counter", Kept)
    monkeypatch.setattr(metrics, "Gauge", Kept)
    told = Metrics(LINKS, 5)
    done = {"event": "end", "stage": "one", "host": "a", "status": "finished", "samples": 48_000}
    for event in (
        {"event": "begin", "stage": "one", "shard": "s0"},
        done,
        done | {"status": "skipped"},
        done | {"stage": "two", "host": "b", "samples": 24_000},
        done | {"status": "failed", "host": None},
        {"event": "again", "stage": "one", "host": "a"},
        {"event": "left-out", "stage": "two", "node": "a"},
        {"event": "node-left-out", "node": "a"},
        {"event": "node-left-out", "node": "b"},
        {"event": "node-joined", "node": "c"},
    ):
        told.add(event)
    assert Kept.values == {
        "overtone_labels_shards_finished": {("one", "a"): 2, ("two", "b"): 1},
        "overtone_labels_shards_failed": {("one", ""): 1},
        "overtone_labels_shards_retried": {("one", "a"): 1},
        "overtone_labels_audio_seconds": {("one", "a"): 2.0, ("two", "b"): 1.0},
        "overtone_labels_shards_pending": {("one",): 2, ("two",): 3},
        "overtone_labels_nodes_left_out": {(): 2},
    }


def scraped(port: int) -> dict[tuple[str, str], float]:
    """Value of each of our metrics, by name and stage."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = re.findall(r"^ray_(overtone_\w+)\{(.*)\} (\S+)$", answer.read().decode(), re.M)
    stages = [(name, re.search('stage="(.*?)"', tags), value) for name, tags, value in lines]
    return {(name, stage[1] if stage else ""): float(value) for name, stage, value in stages}


@pytest.mark.timeout(180)
def test_they_are_on_the_endpoint_of_the_drivers_node(monkeypatch):
    """Where `ray[default]` is not installed there is none, and nothing is said of it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with session(2) as started:
        assert len(list(run_chain(LINKS, ["s0", "s1", "s2", "s3"], started, 2))) == 4
        [port] = [node["MetricsExportPort"] for node in ray.nodes()]
        if not find_spec("prometheus_client"):
            assert port == -1
            return
        expected = {
            ("overtone_labels_shards_finished", "one"): 3,
            ("overtone_labels_shards_failed", "one"): 1,
            ("overtone_labels_shards_retried", "one"): 1,
            ("overtone_labels_shards_finished", "two"): 3,
            ("overtone_labels_shards_pending", "one"): 0,
            ("overtone_labels_shards_pending", "two"): 0,
            ("overtone_labels_nodes_left_out", ""): 0,
        }
        deadline, seen = time.monotonic() + 60, {}
        while not expected.items() <= seen.items() and time.monotonic() < deadline:
            time.sleep(0.5)
            seen = {
                (name.removesuffix("_total"), stage): value for (name, stage), value in scraped(port).items()
            }
    assert expected.items() <= seen.items()
