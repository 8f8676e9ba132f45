"""One function on the cluster: its value, its reports, its errors and the death of its worker."""

import pytest
from ray.exceptions import RayActorError

from cluster import sharded
from cluster.sharded import report, run_one_reporting
from tests.cluster.fakes import Later, node, raised_in_task


@pytest.fixture
def asked(ledger, monkeypatch):
    """What Ray is asked for; what its tasks raise is raised as Ray does."""
    found = []

    def remote(**options):
        found.append(options)
        return Later

    def get(task, timeout=None):
        try:
            return task()
        except KeyError as error:
            raise raised_in_task(error) from None

    monkeypatch.setattr(sharded, "alive", lambda: [node(4), node(4, gpus=1)])
    monkeypatch.setattr(sharded.ray, "remote", remote)
    monkeypatch.setattr(sharded.ray, "get", get)
    return found


def test_a_function_on_the_cluster_reports_and_returns(asked):
    def work(one, two, report):
        report({"step": 1, "loss": one})
        report({"step": 2, "loss": two})
        return one + two

    events = []
    assert run_one_reporting(work, events.append, 3, 4, cpus=2) == 7
    assert events == [{"step": 1, "loss": 3}, {"step": 2, "loss": 4}]
    assert run_one_reporting(lambda report: 1, events.append, cpus=0.5, gpus=1) == 1
    assert asked == [
        {"num_cpus": 2, "num_gpus": 0, "max_retries": 3},
        {"num_cpus": 0.5, "num_gpus": 1, "max_retries": 3},
    ]


@pytest.mark.parametrize("gpus", [0, 0.5, 1, 2])
def test_it_says_that_it_waits_for_a_node_with_gpus(asked, gpus):
    events = []
    assert run_one_reporting(lambda report: 1, events.append, cpus=1, gpus=gpus) == 1
    assert events == ([{"waits": "for a node with 2 GPU"}] if gpus == 2 else [])


def test_what_the_function_raises_is_raised_here_after_its_reports(asked):
    cause, events = KeyError("mine"), []

    def work(report):
        report({"step": 1})
        raise cause

    with pytest.raises(KeyError) as error:
        run_one_reporting(work, events.append, cpus=1)
    assert error.value is cause and error.value.__suppress_context__ and events == [{"step": 1}]


def test_a_dead_worker_is_not_the_functions_own_error(asked):
    def work(report):
        raise RayActorError

    with pytest.raises(RayActorError):
        run_one_reporting(work, print, cpus=1)


def test_reports_go_to_the_ledger(ledger):
    report(Later(ledger), {"step": 1})
    assert ledger.drain() == [{"step": 1}]
