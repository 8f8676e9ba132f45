"""Connecting: what is asked of Ray, and what is refused before Ray would wait for it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import session
from cluster.pools import Session
from cluster.session import preflight, reachable
from tests.cluster.fakes import node

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def listening():
    """HOST:PORT at which something listens that never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def health(monkeypatch):
    """Ray's own health check, replaced: set `ends` to its exit code or to what it raises."""
    found = SimpleNamespace(ends=0, calls=[])

    def run(command, **options):
        found.calls.append((command, options))
        if isinstance(found.ends, Exception):
            raise found.ends
        return SimpleNamespace(returncode=found.ends)

    monkeypatch.setattr(session.subprocess, "run", run)
    return found


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":1", "host:", "ray://h:1"])
def test_addresses_that_are_none(address):
    with pytest.raises(ValueError) as error:
        reachable(address)
    assert str(error.value).startswith(
        f"RAY_ADDRESS is {address!r}: expected HOST:PORT of the head node, or auto"
    )


def test_a_dead_address_is_refused_in_seconds():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"no Ray cluster answers at 127.0.0.1:{port} \(Connection refused\): start it"
    ):
        reachable(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 10


def test_an_address_that_does_not_answer_is_given_up(monkeypatch):
    asked = []

    def connect(where, timeout):
        asked.append((where, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(session.socket, "create_connection", connect)
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 10\.0\.0\.1:6379 \(timed out\)"):
        reachable("10.0.0.1:6379")
    assert asked == [(("10.0.0.1", 6379), session.CONNECT_S)] and 1 < session.CONNECT_S < 15


def test_a_healthy_cluster_is_taken(listening, health):
    reachable(listening)
    [(command, options)] = health.calls
    assert command[1:] == [
        "-m",
        "ray.scripts.scripts",
        "health-check",
        "--address",
        listening,
        "--skip-version-check",
    ]
    assert options == {"capture_output": True, "timeout": session.HEALTH_S} and 5 < session.HEALTH_S < 60


@pytest.mark.parametrize(
    "ends", [1, -9, subprocess.TimeoutExpired("ray", 20)], ids=["refused", "killed", "silent"]
)
def test_something_else_that_listens_is_no_cluster(listening, health, ends):
    health.ends = ends
    with pytest.raises(ValueError, match=f"what listens at {listening} is no healthy Ray cluster"):
        reachable(listening)


def test_auto_takes_the_cluster_started_on_this_machine(listening, health, monkeypatch):
    read = []
    monkeypatch.setattr(session.Path, "read_text", lambda path: read.append(str(path)) or f"{listening}\n")
    reachable("auto")
    assert read == ["/tmp/ray/ray_current_cluster"] and health.calls[0][0][5] == listening


def test_auto_without_a_cluster_on_this_machine_is_refused(monkeypatch):
    def read_text(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(session.Path, "read_text", read_text)
    with pytest.raises(ValueError, match="RAY_ADDRESS=auto, but no Ray cluster was started on this machine"):
        reachable("auto")


# Before the scan.


@pytest.fixture
def asked(monkeypatch):
    """Addresses that were tried."""
    found = []
    monkeypatch.setattr(session, "reachable", found.append)
    return found


@pytest.mark.parametrize("address", [None, "", "local"])
def test_on_this_machine_gpus_are_looked_for_only_where_they_are_wanted(asked, monkeypatch, address):
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # its import takes seconds
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    preflight(0)
    with pytest.raises(
        ValueError, match="run.pools asks for a GPU, this machine has none that torch can use"
    ):
        preflight(0.5)
    cuda.is_available = lambda: True
    preflight(0.5)
    assert asked == []


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_cluster_is_tried_and_has_gpus_of_its_own(asked, monkeypatch, gpus):
    monkeypatch.setitem(
        sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    )
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    preflight(gpus)
    assert asked == ["head:6379"]


# The session itself.


@pytest.fixture(autouse=True)
def on_term():
    """A handler of the test's own, so that it is seen whether a session gives it back."""
    before, own = signal.getsignal(signal.SIGTERM), lambda *_: None
    signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


class Ray:
    """What a session asks of Ray."""

    def __init__(self, monkeypatch, *nodes, fails: Exception | None = None):
        self.fails, self.began, self.ended = fails, [], 0
        monkeypatch.setattr(session.ray, "init", self.init)
        monkeypatch.setattr(session.ray, "shutdown", self.shutdown)
        monkeypatch.setattr(session.ray, "nodes", lambda: list(nodes))
        total = {name: sum(n["Resources"].get(name, 0) for n in nodes) for name in ("CPU", "GPU")}
        monkeypatch.setattr(
            session.ray, "cluster_resources", lambda: {k: v for k, v in total.items() if v} | {"memory": 7.0}
        )

    def init(self, **options):
        os.write(2, b"native noise")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # ray.init does the like
        self.began.append(options)
        if self.fails:
            raise self.fails

    def shutdown(self):
        self.ended += 1


def test_on_this_machine_ray_is_started_and_ended(monkeypatch, capfd, on_term):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    files = len(os.listdir("/proc/self/fd"))
    ray = Ray(monkeypatch, node(3))
    with session.session(3) as found:
        assert found == Session(cpus=3, gpus=0, node_cpus=3, memory_bytes=7.0)
        assert signal.getsignal(signal.SIGTERM) is on_term and not ray.ended
        os.write(2, b"our own")
    assert len(os.listdir("/proc/self/fd")) == files
    [options] = ray.began
    assert options == {
        "log_to_driver": False,
        "logging_level": 40,
        "address": "local",
        "num_cpus": 3,
        "include_dashboard": False,
    }
    assert ray.ended == 1 and capfd.readouterr().err == "our own"


def test_with_debug_ray_and_its_workers_write_to_the_terminal(monkeypatch, capfd):
    monkeypatch.setenv("OVERTONE_DEBUG", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Ray(monkeypatch, node(3))
    with session.session(3):
        pass
    assert (ray.began[0]["log_to_driver"], ray.began[0]["logging_level"]) == (True, 20)
    assert capfd.readouterr().err == "native noise"


def test_without_a_number_all_cpus_of_this_process_are_taken(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(session, "available_cpus", lambda: 5)
    ray = Ray(monkeypatch, node(5))
    with session.session():
        pass
    assert ray.began[0]["num_cpus"] == 5


def test_a_cluster_is_given_the_packages_of_this_one_and_the_stores_variables(asked, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "music")
    ray = Ray(
        monkeypatch,
        node(4, gpus=2),
        node(16, name="n2"),
        node(64, name="dead", alive=False),
        node(0, gpus=8, name="empty"),
    )
    with pytest.raises(KeyError), session.session(3) as found:
        assert (found.gpus, found.node_cpus) == (10, 16)
        raise KeyError
    [options] = ray.began
    modules = [str(ROOT / name) for name in ("pipeline", "stages", "cluster")]
    assert options == {
        "log_to_driver": False,
        "logging_level": 40,
        "address": "head:6379",
        "runtime_env": {"py_modules": modules, "env_vars": {"AWS_PROFILE": "music"}},
    }
    assert all(Path(m).is_dir() for m in modules) and asked == ["head:6379"] and ray.ended == 1


@pytest.mark.parametrize(
    "fails",
    [ConnectionError("lost\nlong story"), RuntimeError("lost\nlong story"), TimeoutError("lost\nlong story")],
)
def test_a_ray_that_does_not_start_is_said_in_one_line(monkeypatch, capfd, fails):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Ray(monkeypatch, node(1), fails=fails)
    with pytest.raises(ValueError) as error, session.session(1):
        raise AssertionError("no session")
    assert str(error.value) == "Ray at local cannot be used: lost" and error.value.__suppress_context__
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"  # also after a failure the terminal is ours again


def test_cpus_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(
        session.os, "sched_getaffinity", lambda process: {0, 3, 7} if process == 0 else set(), raising=False
    )
    assert session.available_cpus() == 3
    monkeypatch.delattr(session.os, "sched_getaffinity")
    monkeypatch.setattr(session.os, "cpu_count", lambda: 6)
    assert session.available_cpus() == 6
    monkeypatch.setattr(session.os, "cpu_count", lambda: None)
    assert session.available_cpus() == 1


class TestSessionFolder:
    @pytest.fixture(autouse=True)
    def nothing_set(self, monkeypatch):
        for name in ("RAY_TMPDIR", "TMPDIR"):
            monkeypatch.delenv(name, raising=False)

    def test_a_short_tmpdir_or_none_is_left_to_ray(self, monkeypatch):
        assert session.session_folder() is None
        monkeypatch.setenv("TMPDIR", "/" + "a" * 39)
        assert session.session_folder() is None

    @pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
    def test_one_too_long_for_sockets_is_replaced_by_the_first_that_can_be_written(self, monkeypatch, name):
        monkeypatch.setenv(name, "/" + "a" * 40)
        monkeypatch.setattr(session, "SHORT_FOLDERS", ("/nowhere", "/tmp"))
        assert session.session_folder() == f"/tmp/ray-{os.getuid()}"
        monkeypatch.setattr(session, "SHORT_FOLDERS", ("/nowhere",))
        with pytest.raises(ValueError, match=f"^{name} is '/a+', over 40 bytes: .* shorter one$"):
            session.session_folder()
