import socket
import time

import pytest

from cluster import session
from cluster.session import _check_node, reachable
from stages.label.shard import software
from stages.shards.storage import Storage


def seen(**changes) -> dict:
    return {"host": "n2", "sees": True, "software": software(), "missing": []} | changes


def test_a_good_node_passes(tmp_path):
    _check_node(seen(), "10.0.0.2", software(), Storage(tmp_path))


@pytest.mark.parametrize(("changes", "said"), [
    ({"sees": False}, "node n2 (10.0.0.2) does not see"),
    ({"missing": ["/music"]}, "does not see the audio at /music"),
    ({"software": software() | {"torch": "1.0"}}, "has torch 1.0 (here "),
])
def test_a_bad_node_is_named_with_what_it_lacks(tmp_path, changes, said):
    with pytest.raises(ValueError) as error:
        _check_node(seen(**changes), "10.0.0.2", software(), Storage(tmp_path))
    assert said in str(error.value)


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":1", "ray://h:1"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError, match="RAY_ADDRESS"):
        reachable(address)


def test_a_dead_address_is_refused_in_seconds():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ValueError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        reachable(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 10


def test_something_else_that_listens_is_no_cluster(monkeypatch):
    monkeypatch.setattr(session, "HEALTH_S", 3.0)  # it never answers: waiting longer shows nothing more
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        started = time.monotonic()
        with pytest.raises(ValueError, match="is no healthy Ray cluster"):
            reachable(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 60
