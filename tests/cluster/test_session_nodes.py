"""Every node of a cluster is looked at before the work: does it see OUT and the audio, has it the same
software."""

import os
from types import SimpleNamespace

import pytest
from ray.exceptions import GetTimeoutError, RayActorError, WorkerCrashedError

from cluster import session
from cluster.session import _check_node, _look, check_nodes
from stages.label.machine import machine
from stages.label.shard import software
from stages.shards.storage import Storage
from tests.cluster.fakes import Clock, node
from tests.object_store import served


def seen(**changes) -> dict:
    return {"host": "n2", "sees": True, "software": software(), "missing": [], "problem": ""} | changes


def test_a_good_node_passes(tmp_path):
    _check_node(seen(), "10.0.0.2", software(), Storage(tmp_path))
    _check_node(seen(software=software() | {"more": "1"}), "10.0.0.2", software(), Storage(tmp_path))


def test_a_bad_node_is_named_with_what_it_lacks(tmp_path):
    own, found = {"torch": "2.0", "numpy": "1.0", "ray": "2.6"}, {"torch": "1.0", "ray": "2.6"}
    for changes, said in [
        (
            {"sees": False},
            f"node n2 (10.0.0.2) does not see {tmp_path}: OUT must be on storage that every node "
            f"shares, or s3://",
        ),
        (
            {"missing": ["/music", "/more"]},
            "node n2 (10.0.0.2) does not see the audio at /music: mount it there, or use s3://",
        ),
        (
            {"software": found},
            "node n2 (10.0.0.2) has torch 1.0 (here 2.0), numpy None (here 1.0): "
            "labels repeat only with the same versions everywhere",
        ),
        (
            {"sees": False, "problem": "cannot read from the store: s3://labels: timed out"},
            "node n2 (10.0.0.2) cannot read from the store: s3://labels: timed out",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            _check_node(seen(software=own) | changes, "10.0.0.2", own, Storage(tmp_path))
        assert str(error.value) == said


def test_a_node_looks_for_the_probe_and_for_local_audio(tmp_path):
    Storage(tmp_path).write("probe", b"")
    roots = [str(tmp_path), str(tmp_path / "none")]
    found = _look._function(str(tmp_path), "probe", roots)
    assert found == {
        "host": os.uname().nodename,
        "sees": True,
        "software": software(),
        "missing": [str(tmp_path / "none")],
        "problem": "",
        "machine": machine(),
    }
    assert _look._function(str(tmp_path), "other", [])["sees"] is False
    assert _look._default_options == {
        "num_cpus": 0,
        "max_retries": 2,
    }  # a node whose CPUs are all taken answers as well


class Nodes:
    """Nodes that are looked at in this process; `answers` gives what another one says, or raises."""

    def __init__(self, monkeypatch, *nodes, answers=lambda node, found: found):
        self.answers, self.looked, self.timeouts, self.clock = answers, [], [], Clock()
        self.asked: list[str] = []  # of a store
        monkeypatch.setattr(session, "alive", lambda: nodes)
        monkeypatch.setattr(session, "time", self.clock)
        monkeypatch.setattr(session, "_look", SimpleNamespace(options=self.options))
        monkeypatch.setattr(session.ray, "get", self.get)
        monkeypatch.setattr(session.objects, "get", self.asked.append)

    def options(self, scheduling_strategy):
        where = scheduling_strategy
        assert where.soft is False, "another node must not answer in its place"

        def remote(place, probe, roots):
            self.looked.append((where.node_id, place, roots))
            return where.node_id, _look._function(place, probe, roots)

        return SimpleNamespace(remote=remote)

    def get(self, task, timeout):
        self.timeouts.append(timeout)
        return self.answers(*task)


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "music").mkdir()
    return Storage(tmp_path / "out")


def test_this_machine_alone_need_not_be_looked_at(here, monkeypatch):
    nodes = Nodes(monkeypatch, node(4))
    check_nodes(here, ["/nowhere"])
    assert nodes.looked == [] and not os.path.exists(here.base)


@pytest.mark.parametrize("count", [1, 2])
def test_each_node_of_a_cluster_is_looked_at_and_the_probe_removed(here, monkeypatch, count):
    if count == 1:
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    names = [f"{i}" * 56 for i in range(count)]
    nodes = Nodes(monkeypatch, *(node(4, name=name) for name in names))
    check_nodes(here, ["music", "s3://music/x"])
    assert nodes.looked == [(name, here.base, [os.path.abspath("music"), "s3://music/x"]) for name in names]
    assert [asked.rpartition("/")[0] for asked in nodes.asked] == ["music/x"] * count
    assert here.names("") == set()


def test_without_an_out_only_the_audio_is_looked_for(here, monkeypatch):
    nodes = Nodes(monkeypatch, *(node(4, name=f"{i}" * 56) for i in range(2)))
    check_nodes(None, ["music"])
    assert [found[1:] for found in nodes.looked] == [(None, [os.path.abspath("music")])] * 2
    assert not os.path.exists(here.base)


def test_an_object_store_is_given_by_its_address(here, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    store = Storage.__new__(Storage)
    store.is_local, store.root, store.base = False, "s3://labels/out", "labels/out"
    store.write, store.delete = here.write, here.delete
    nodes = Nodes(monkeypatch, node(4, name="1" * 56))
    check_nodes(store, [])
    assert [place for _, place, _ in nodes.looked] == ["s3://labels/out"]
    assert [asked.rpartition("/")[0] for asked in nodes.asked] == ["labels/out"]


@pytest.mark.parametrize("root", [[], ["s3://own-music"]])
def test_a_store_that_refuses_a_node_is_told_as_its_credentials(here, monkeypatch, root):
    """Asked without any, as on a node without an instance role."""
    here.write("probe", b"")
    with served("nodes"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        found = _look._function("s3://nodes/out" if not root else here.base, "probe", root)
    with pytest.raises(ValueError) as error:
        _check_node(found, "10.0.0.2", software(), here)
    assert "(10.0.0.2) has no S3 credentials with the right to read: s3://" in str(error.value)
    assert "Unable to locate credentials; set AWS_ACCESS_KEY_ID" in str(error.value)
    assert str(error.value).endswith("or give that node an instance role")


def test_a_store_that_lets_a_node_read_is_seen(here):
    with served("nodes-seen"):
        store = Storage("s3://nodes-seen/out")
        store.write("probe", b"")
        assert _look._function(store.place, "probe", ["s3://nodes-seen/music"])["sees"]
        other = _look._function(store.place, "other", [])
    assert not other["sees"] and not other["problem"]


@pytest.mark.parametrize("answer", [GetTimeoutError("late"), WorkerCrashedError(), RayActorError()])
def test_a_node_that_does_not_answer_is_named(here, monkeypatch, answer):
    def answers(name, found):
        if name[0] == "1":
            raise answer
        return found

    Nodes(monkeypatch, node(4, name="0" * 56), node(4, name="1" * 56), answers=answers)
    with pytest.raises(ValueError) as error:
        check_nodes(here, [])
    assert str(error.value) == (
        f"node address-of-{'1' * 56} does not answer ({type(answer).__name__}): "
        "remove it from the cluster or see its Ray logs"
    )
    assert here.names("") == set()


def test_a_node_that_lacks_something_is_refused_and_the_probe_removed(here, monkeypatch):
    names = ["0" * 56, "1" * 56]
    Nodes(
        monkeypatch,
        *(node(4, name=name) for name in names),
        answers=lambda name, found: found | {"sees": name == names[0]},
    )
    with pytest.raises(ValueError, match=rf"\(address-of-{names[1]}\) does not see {here.root}"):
        check_nodes(here, [])
    assert here.names("") == set()


def test_all_nodes_together_have_a_minute(here, monkeypatch):
    nodes = Nodes(monkeypatch, *(node(4, name=str(i) * 56) for i in range(3)))
    nodes.answers = lambda name, found: nodes.clock.sleep(40) or found
    check_nodes(here, [])
    assert nodes.timeouts == [60.0, 20.0, 1.0]


def test_only_nodes_that_live_and_can_work_count(monkeypatch):
    nodes = [
        node(4),
        node(2, name="dead", alive=False),
        node(0, gpus=1, name="no CPU"),
        node(0.5, name="half"),
    ]
    monkeypatch.setattr(session.ray, "nodes", lambda: nodes)
    assert session.alive() == [nodes[0], nodes[3]]
