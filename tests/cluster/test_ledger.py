"""The ledger carries what a function on the cluster reports to the driver."""

import threading
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from cluster import ledger as module
from cluster.ledger import Ledger, ledger_here, watching
from tests.cluster.fakes import Local, Threads, plain


@pytest.fixture
def ledger():
    return plain(Ledger)()


def test_events_are_given_once_in_order(ledger):
    ledger.add({"step": 1})
    ledger.add({"step": 2})
    assert ledger.drain() == [{"step": 1}, {"step": 2}] and ledger.drain() == []


def test_it_outlives_its_process_and_takes_no_cpu():
    assert Ledger._default_options == {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


def test_it_stands_on_the_node_of_the_driver(monkeypatch):
    asked = []

    def options(**given):
        asked.append(given)
        return SimpleNamespace(remote=lambda: "ledger")

    monkeypatch.setattr(
        module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a" * 56)
    )
    monkeypatch.setattr(module, "Ledger", SimpleNamespace(options=options))
    assert ledger_here() == "ledger"
    [given] = asked
    strategy = given.pop("scheduling_strategy")
    assert (strategy.node_id, strategy.soft, given) == ("a" * 56, True, {})


# What the driver sees of it.


class Drains:
    """Gives what is put into `waiting`; raises the next of `fails` instead, where there is one."""

    def __init__(self, monkeypatch, *fails: Exception | None):
        self.waiting: list[dict] = []
        self.fails, self.drains, self.timeouts = list(fails), 0, []
        self.drained = threading.Event()
        monkeypatch.setattr(module, "POLL_S", 0.001)
        monkeypatch.setattr(module.ray, "get", self.get)
        self.handle = Local(SimpleNamespace(drain=lambda: None))

    def get(self, task, timeout):
        self.timeouts.append(timeout)
        fails = self.fails.pop(0) if self.fails else None
        if fails:
            raise fails
        self.drains += 1
        events, self.waiting = self.waiting, []
        self.drained.set()
        return events


def test_reports_come_while_the_work_goes_on(monkeypatch):
    drains, came, seen = Drains(monkeypatch), threading.Event(), []
    with watching(drains.handle, lambda event: seen.append(event) or came.set()):
        for n in (1, 2):
            came.clear()
            drains.waiting = [{"n": n}]
            assert came.wait(10), "nobody looks"
    assert seen == [{"n": 1}, {"n": 2}] and set(drains.timeouts) == {30}


def test_the_last_reports_come_even_after_an_error_and_nobody_looks_later(monkeypatch):
    drains, seen, threads = Drains(monkeypatch), [], Threads()
    monkeypatch.setattr(module, "threading", threads)
    monkeypatch.setattr(module, "POLL_S", 3600)
    with pytest.raises(KeyError), watching(drains.handle, seen.append):
        [thread] = threads.begun
        assert thread.is_alive() and thread.daemon  # a driver that is interrupted ends
        drains.waiting = [{"n": 1}, {"n": 2}]
        raise KeyError
    assert seen == [{"n": 1}, {"n": 2}] and drains.drains == 1
    assert not thread.is_alive()


def test_a_ledger_that_does_not_answer_for_a_while_is_asked_again(monkeypatch):
    fails = (
        GetTimeoutError("late"),
        ActorUnavailableError("restarting", None),
        ValueError("the session is closing"),
    )
    drains, came, seen = Drains(monkeypatch, *fails), threading.Event(), []
    with watching(drains.handle, lambda event: seen.append(event) or came.set()):
        drains.waiting = [{"n": 1}]
        assert came.wait(10), "nobody looks"
    assert seen == [{"n": 1}] and drains.fails == []


def test_it_is_watched_twice_a_second():
    assert module.POLL_S == 0.5
