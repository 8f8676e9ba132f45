"""Ray, or plain processes: the same functions, and one sentence where Ray is wanted and missing."""

import inspect
import sys

import pytest

from cluster import plain, sharded
from cluster.runner import runner


def test_both_offer_the_same(monkeypatch):
    assert runner(False) is sharded and runner(True) is plain
    for name in ("preflight", "probe_all", "session", "check_nodes", "run_chain", "run_one_reporting"):
        by_ray, by_hand = (inspect.signature(getattr(module, name)) for module in (sharded, plain))
        assert len(by_ray.parameters) == len(by_hand.parameters), name
    assert (sharded.NAME, plain.NAME) == ("Ray", "processes")


def test_a_ray_that_is_not_installed_is_said_with_the_two_ways(monkeypatch):
    monkeypatch.delattr("cluster.sharded")
    for name in ("cluster.sharded", "cluster.session", "cluster.probing", "cluster.ledger"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert runner(True) is plain
    with pytest.raises(ValueError) as error:
        runner(False)
    assert str(error.value) == ("ray is not installed: pip install ray, or add --plain to run without it")


def test_another_missing_package_is_named_as_it_is(monkeypatch):
    monkeypatch.delattr("cluster.sharded")
    monkeypatch.delitem(sys.modules, "cluster.sharded")
    monkeypatch.setitem(sys.modules, "cluster.ledger", None)
    with pytest.raises(ModuleNotFoundError, match="cluster.ledger"):
        runner(False)
