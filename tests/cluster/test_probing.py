"""A scan with a cluster and without, and Ray without its processes: who is asked to read a header."""

from contextlib import contextmanager
from functools import partial

import pytest
from ray.exceptions import RaySystemError

from cluster import probing
from cluster.pools import Session, available_cpus
from cluster.probing import probe_all
from stages.label.scan import probe_pool
from tests.cluster.fakes import got, node, raised_in_task

FILES = [(b"/%d" % number, b"name", 1, 2) for number in range(300)]


def here(files, workers, kept=None):
    for file in files:
        yield file, {"reason": None, "where": "here"}


class Cluster:
    """Its tasks run when they are waited for; some meet an error, or a node that has lost the audio."""

    def __init__(self, monkeypatch, error: Exception | None = None):
        self.error, self.blind, self.opened, self.checked, self.cpus, self.most = (
            error,
            set(),
            0,
            [],
            set(),
            0,
        )
        monkeypatch.setattr(probing, "session", self.session)
        monkeypatch.setattr(probing, "check_nodes", lambda out, roots: self.checked.append((out, roots)))
        monkeypatch.setattr(probing, "alive", lambda: [node(4), node(8)])
        monkeypatch.setattr(probing, "_probe", self)
        monkeypatch.setattr(probing.ray, "wait", self.wait)
        monkeypatch.setattr(probing.ray, "get", got)
        monkeypatch.setattr(probe_pool, "probe_all", here)
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")

    @contextmanager
    def session(self):
        self.opened += 1
        yield Session(12, 0, 8, 0)

    def options(self, num_cpus: float) -> "Cluster":
        self.cpus.add(num_cpus)
        return self

    def remote(self, files: list) -> partial:
        return partial(self.run, files)

    def run(self, files: list) -> list:
        if self.error:
            raise self.error
        reason = "unreadable: No such file or directory" if files[0] in self.blind else None
        return [(file, {"reason": reason, "where": "there"}) for file in files]

    def wait(self, tasks: list, num_returns: int = 1, timeout: float = 0) -> tuple[list, list]:
        self.most = max(self.most, len(tasks))
        return tasks[-num_returns:], tasks[:-num_returns]


def where(outcomes) -> dict[str, int]:
    found = list(outcomes)
    assert sorted(file for file, _ in found) == sorted(FILES)
    return {place: sum(facts["where"] == place for _, facts in found) for place in ("here", "there")}


@pytest.mark.parametrize("address", [None, "", "local"])
def test_without_a_cluster_this_machine_reads(monkeypatch, address):
    cluster = Cluster(monkeypatch)
    monkeypatch.setenv("RAY_ADDRESS", address) if address is not None else monkeypatch.delenv("RAY_ADDRESS")
    assert where(probe_all(FILES, 2, ["/m"])) == {"here": 300, "there": 0} and not cluster.opened


def test_where_nothing_is_new_no_cluster_is_asked(monkeypatch):
    cluster = Cluster(monkeypatch)
    assert list(probe_all([], 2, ["/m"])) == [] and not cluster.opened


def test_nodes_read_a_bounded_number_of_batches_ahead(monkeypatch):
    cluster = Cluster(monkeypatch)
    monkeypatch.setattr(probing, "BATCH", 5)
    assert where(probe_all(iter(FILES), available_cpus(), ["/m"])) == {"here": 0, "there": 300}
    assert (cluster.opened, cluster.checked) == (1, [(None, ["/m"])])
    assert cluster.cpus == {1} and cluster.most == 2 * 12


@pytest.mark.parametrize(
    "here, workers, cpus", [(16, 4, 4), (16, 64, 0.25), (16, 16, 1), (64, 1, 8), (16, 6, 2)]
)
def test_workers_are_in_proportion_to_a_nodes_cpus(monkeypatch, here, workers, cpus):
    cluster = Cluster(monkeypatch)
    monkeypatch.setattr(probing, "available_cpus", lambda: here)
    where(probe_all(FILES, workers, []))
    assert cluster.cpus == {cpus}


def test_what_a_node_sees_nothing_of_is_read_here(monkeypatch):
    cluster = Cluster(monkeypatch)
    cluster.blind = {FILES[64]}
    assert where(probe_all(FILES, 2, [])) == {"here": 64, "there": 300 - 64}


def test_what_fails_is_told(monkeypatch):
    Cluster(monkeypatch, raised_in_task(RuntimeError("a header probe could not start")))
    with pytest.raises(RuntimeError, match="could not start"):
        list(probe_all(FILES, 2, []))
    Cluster(monkeypatch, RaySystemError("the head is gone\nand more"))
    with pytest.raises(OSError, match=r"\(.*head is gone.*\); what was read is kept, run again"):
        list(probe_all(FILES, 2, []))
