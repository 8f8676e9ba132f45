"""Several nodes on one machine: as many as asked for, named, and ended whatever happens."""

import sys

import pytest

from cluster import simulate


class Cluster:
    """What `simulated` asks of Ray's cluster of several nodes."""

    address = "127.0.0.1:6379"

    def __init__(self, **options):
        self.options, self.calls = options, []

    def add_node(self, **options):
        self.calls.append(("add", options))

    def wait_for_nodes(self):
        self.calls.append("wait")

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture(autouse=True)
def made(monkeypatch):
    clusters = []
    monkeypatch.setattr(
        simulate, "Cluster", lambda **options: clusters.append(Cluster(**options)) or clusters[-1]
    )
    return clusters


def test_so_many_nodes_of_so_many_cpus(made):
    with simulate.simulated(3, cpus_per_node=2) as cluster:
        assert cluster.calls == [("add", {"num_cpus": 2})] * 2 + ["wait"]
    assert cluster is made[0] and cluster.calls[-1] == "shutdown" and cluster.calls.count("shutdown") == 1
    assert cluster.options == {
        "initialize_head": True,
        "head_node_args": {"num_cpus": 2, "include_dashboard": False},
    }


def test_one_node_of_one_cpu_is_the_head_alone():
    with simulate.simulated(1) as cluster:
        assert cluster.calls == ["wait"] and cluster.options["head_node_args"]["num_cpus"] == 1


def test_it_is_ended_whatever_happens(made):
    with pytest.raises(KeyError), simulate.simulated(2):
        raise KeyError
    assert made[0].calls[-1] == "shutdown"


@pytest.mark.parametrize(("arguments", "added"), [([], 1), (["4"], 3)])
def test_the_command_says_the_address_and_stays_until_it_is_asked_to_end(made, monkeypatch, arguments, added):
    waited, said = [], []

    def sigwait(signals):
        assert "shutdown" not in made[0].calls
        waited.append({s.name for s in signals})

    monkeypatch.setattr(sys, "argv", ["simulate", *arguments])
    monkeypatch.setattr(simulate.signal, "sigwait", sigwait)
    monkeypatch.setattr(
        simulate, "print", lambda *text, **options: said.append((text, options)), raising=False
    )
    simulate.main()
    assert said == [
        (("RAY_ADDRESS=127.0.0.1:6379",), {"flush": True})
    ]  # whoever reads it through a pipe need not wait for the end
    assert waited == [{"SIGINT", "SIGTERM"}]
    assert len([c for c in made[0].calls if c[0] == "add"]) == added and made[0].calls[-1] == "shutdown"
