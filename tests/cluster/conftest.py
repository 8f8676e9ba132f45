"""The ledger of a chain without Ray's processes."""

import pytest


@pytest.fixture
def ledger(monkeypatch):
    """A ledger in this process, and a Ray whose calls run when they are waited for."""
    from cluster import sharded
    from cluster.ledger import Ledger
    from tests.cluster.fakes import Later, got, plain

    ledger = plain(Ledger)()
    monkeypatch.setattr(sharded, "ledger_here", lambda: Later(ledger))
    monkeypatch.setattr(sharded.ray, "get", got)
    return ledger
