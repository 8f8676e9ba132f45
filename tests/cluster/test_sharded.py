"""On real Ray: a chain whose worker dies, a function that reports, the look at nodes, the check of an
address."""

import os
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import ray

from cluster import session as sessions
from cluster.session import check_nodes, reachable, session
from cluster.sharded import StageSpec, run_chain, run_one_reporting
from stages.shards.storage import Storage


@pytest.fixture(scope="module")
def ray_session():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with session(2) as started:
            yield started


@dataclass(frozen=True)
class Work:
    """Finishes every shard but `deadly`, at which its process dies."""

    stage: str
    deadly: str | None = None

    def __call__(self) -> Callable[[str], dict]:
        return self.run

    def run(self, shard: str, planned: object = None) -> dict:
        if shard == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"shard": shard, "stage": self.stage, "status": "finished"}


def test_a_shard_that_kills_its_worker_is_given_up(ray_session):
    events = []
    links = [StageSpec("one", Work("one", deadly="s2")), StageSpec("two", Work("two"))]
    rows = {
        row["shard"]: row for row in run_chain(links, ["s0", "s1", "s2", "s3"], ray_session, 1, events.append)
    }
    assert rows.keys() == {"s0", "s1", "s2", "s3"}
    assert rows["s2"]["failed"] == "one" and "died 1 times" in rows["s2"]["error"]
    assert all("failed" not in rows[s] and rows[s]["two"] == "finished" for s in ("s0", "s1", "s3"))
    begun = [e for e in events if e["event"] == "begin" and e["stage"] == "one" and e["shard"] == "s2"]
    ended = sorted((e["stage"], e["shard"], e["status"]) for e in events if e["event"] == "end")
    assert ended == [("one", s, "failed" if s == "s2" else "finished") for s in ("s0", "s1", "s2", "s3")] + [
        ("two", s, "finished") for s in ("s0", "s1", "s3")
    ]
    assert len(begun) == 1
    assert not [e for e in events if e["stage"] == "two" and e["shard"] == "s2"]


def summed(values, report):
    report({"of": len(values)})
    if not values:
        raise ValueError("nothing to sum")
    return sum(values), os.getpid()


def test_a_function_runs_in_another_process_reports_and_raises_its_own_errors(ray_session):
    events = []
    value, process = run_one_reporting(summed, events.append, [1, 2, 3], cpus=1)
    assert value == 6 and process != os.getpid() and events == [{"of": 3}]
    with pytest.raises(ValueError) as error:
        run_one_reporting(summed, events.append, [], cpus=1)
    assert type(error.value) is ValueError and str(error.value) == "nothing to sum"
    assert events == [{"of": 3}, {"of": 0}]


def test_the_nodes_of_a_cluster_are_looked_at(ray_session, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "this cluster")
    assert ray_session.cpus == ray_session.node_cpus == 2 and ray_session.memory_bytes > 0
    out = Storage(tmp_path / "out")
    check_nodes(out, [str(tmp_path)])
    with pytest.raises(
        ValueError, match=f"node {platform.node()} .* does not see the audio at {tmp_path}/none"
    ):
        check_nodes(out, [str(tmp_path / "none")])
    assert out.names("") == set()


def test_the_address_of_a_cluster_is_taken(ray_session, monkeypatch):
    # where other processes hold the cores, the start alone takes long
    monkeypatch.setattr(sessions, "HEALTH_S", 120.0)
    address = ray.get_runtime_context().gcs_address
    assert reachable(address) is None, "a real head is healthy"
    host, _, _ = address.rpartition(":")
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {host}:1 "):
        reachable(f"{host}:1")


def missing():
    raise ModuleNotFoundError("no module named 'ours'")


class Elsewhere:
    """A teacher whose module is not on the workers' node: its actor dies before it is made."""

    def __reduce__(self):
        return missing, ()


@pytest.mark.timeout(120)
def test_what_cannot_be_unpickled_on_a_node_is_no_lost_node(ray_session):
    """Else its shard would be tried for ever."""
    rows = list(run_chain([StageSpec("one", Elsewhere())], ["s0", "s1"], ray_session))
    assert {row["fatal"] for row in rows} == {True} and "no module named 'ours'" in rows[0]["error"]
