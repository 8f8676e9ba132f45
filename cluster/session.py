"""Connect to a Ray cluster or start Ray here; what would fail later is stated before, in one sentence."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.modules import own_modules
from cluster.pools import Session, available_cpus, check_gpus, check_machine, debugging
from stages.label.machine import Kinds, machine
from stages.label.shard import software
from stages.shards import objects
from stages.shards.storage import Storage

CONNECT_S = 5.0
# A socket's path has at most 107 bytes; below the folder Ray adds /ray/session_<time>_<pid>/sockets/…
LONGEST_TMPDIR = 40
SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108
HEALTH_S = 20.0
PROBE_S = 60.0
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY where this is started (AWS_* goes to all nodes), or "
    "give that node an instance role"
)


@contextmanager
def session(cpus: int | None = None, own: str = "") -> Iterator[Session]:
    """By RAY_ADDRESS, or started on this machine. `own`: a module that nodes may not have."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    level = logging.INFO if debugging() else logging.ERROR
    options = {"address": address, "log_to_driver": debugging(), "logging_level": level}
    if address == "local":
        options |= {"num_cpus": cpus or available_cpus(), "include_dashboard": False}
        options |= {"_temp_dir": folder} if (folder := session_folder()) else {}
    else:
        reachable(address)
        root = Path(__file__).resolve().parent.parent
        given = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        modules = [f"{root}/{name}" for name in ("pipeline", "stages", "cluster")] + own_modules(own)
        options["runtime_env"] = {"py_modules": modules} | ({"env_vars": given} if given else {})
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if any(not argument.isascii() for argument in sys.argv):
            ray._raylet.setproctitle("overtone")  # Ray takes the command line as a label, if it is UTF-8
        with _quiet():
            ray.init(**options)
        signal.signal(signal.SIGTERM, on_term)  # ray.init replaces it with its own
    except (ConnectionError, RuntimeError, TimeoutError, ray.exceptions.RuntimeEnvSetupError) as error:
        raise ValueError(f"Ray at {address} cannot be used: {str(error).splitlines()[0]}") from None
    try:
        total, largest = ray.cluster_resources(), max(n["Resources"]["CPU"] for n in alive())
        seen = Session(total.get("CPU", 0), total.get("GPU", 0), largest, total.get("memory", 0))
        yield seen._replace(grows=address != "local")
    finally:
        ray.shutdown()


def session_folder() -> str | None:
    """A shorter folder for Ray's session where TMPDIR is too long for the names of its sockets: None if it
    is not. Raises ValueError when there is none."""
    name = next((v for v in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(v)), None)
    if name is None or len(os.fsencode(os.path.abspath(os.environ[name]))) <= LONGEST_TMPDIR:
        return None
    for folder in SHORT_FOLDERS:
        if os.access(folder, os.W_OK | os.X_OK):
            return f"{folder}/ray-{os.getuid()}"
    raise ValueError(
        f"{name} is {os.environ[name]!r}, over {LONGEST_TMPDIR} bytes: Ray's sockets have no room for such a "
        f"path, and none of {', '.join(SHORT_FOLDERS)} can be written; set RAY_TMPDIR to a shorter one"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray's native lines off the terminal; what goes wrong is an exception."""
    if debugging():
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def preflight(gpus_wanted: float) -> None:
    """Before the scan, refuse a stale RAY_ADDRESS, and a GPU where there is none."""
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        reachable(address)
        return
    session_folder()
    check_gpus(gpus_wanted)


def reachable(address: str) -> None:
    """Refuse within seconds an address without a healthy cluster, where Ray waits for minutes."""
    seen = address
    if address == "auto":
        try:
            seen = Path("/tmp/ray/ray_current_cluster").read_text().strip()
        except OSError:
            raise ValueError(
                "RAY_ADDRESS=auto, but no Ray cluster was started on this machine: start one (ray start "
                "--head), or unset RAY_ADDRESS"
            ) from None
    host, _, port = seen.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise ValueError(
            f"RAY_ADDRESS is {address!r}: expected HOST:PORT of the head node, or auto; run this on a "
            f"machine of the cluster (ray:// clients are not supported)"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {seen} ({error.strerror or error}): start it, correct RAY_ADDRESS, "
            f"or unset it to run on this machine"
        ) from None
    check = ["-m", "ray.scripts.scripts", "health-check", "--address", seen, "--skip-version-check"]
    with suppress(subprocess.TimeoutExpired):
        if not subprocess.run([sys.executable, *check], capture_output=True, timeout=HEALTH_S).returncode:
            return
    raise ValueError(
        f"what listens at {seen} is no healthy Ray cluster: correct RAY_ADDRESS (the head's port is 6379 "
        f"unless set), or unset it to run on this machine"
    )


def alive() -> list[dict]:
    return [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]


@ray.remote(num_cpus=0, max_retries=2)
def _look(out: str | None, probe: str, roots: list[str]) -> dict:
    missing = [r for r in roots if "://" not in r and not os.path.exists(r)]
    found = {"host": socket.gethostname(), "software": software(), "missing": missing, "problem": ""}
    try:
        found["sees"] = out is None or _reads(out, probe)
        for root in roots:
            if root.startswith("s3://"):
                _reads(root, probe)  # it is not there, which a store says only to those who may list
    except OSError as error:
        found |= {"sees": False, "problem": f"cannot read from the store: {error}"}
        if isinstance(error, PermissionError):
            found["problem"] = f"has no S3 credentials with the right to read: {error}; {CREDENTIALS}"
    return found | {"machine": machine()}


def _reads(place: str, name: str) -> bool:
    """Whether there is such a file. PermissionError for a store that does not let this node read."""
    if not place.startswith("s3://"):
        return Storage(place).exists(name)
    try:
        objects.get(f"{place.removeprefix('s3://').rstrip('/')}/{name}")
    except FileNotFoundError:
        return False
    return True


def check_nodes(out: Storage | None, roots: list[str], kinds: Kinds | None = None) -> Callable[[dict], str]:
    """ValueError naming a node that does not see OUT (None: it need not) or the audio, has other packages, or
    is of another kind than `kinds`, which it is added to; None: they may be mixed. Returns what says the same
    of a node that joins later."""
    if len(alive()) > 1 or os.environ.get("RAY_ADDRESS"):
        _check_nodes(out, roots, alive(), kinds)  # else it is this machine, where the scan has read the audio
    else:
        check_machine("this machine", machine(), kinds)

    def late(node: dict) -> str:
        try:
            _check_nodes(out, roots, [node], kinds)
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    return late


def _check_nodes(out: Storage | None, roots: list[str], nodes: list[dict], kinds: Kinds | None) -> None:
    roots = [r if "://" in r else os.path.abspath(r) for r in roots]
    probe = f"probe-{uuid.uuid4().hex}"
    if out:
        out.write(probe, b"seen\n")
    try:
        tasks = []
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = _look.options(scheduling_strategy=where).remote(out and out.place, probe, roots)
            tasks.append((node["NodeManagerAddress"], task))
        own, deadline = software(), time.monotonic() + PROBE_S
        for address, task in tasks:
            try:
                seen = ray.get(task, timeout=max(1.0, deadline - time.monotonic()))
            except ray.exceptions.RayError as error:  # a time-out too
                raise ValueError(
                    f"node {address} does not answer ({type(error).__name__}): remove it from the cluster or "
                    f"see its Ray logs"
                ) from None
            _check_node(seen, address, own, out)
            check_machine(f"node {seen['host']} ({address})", seen["machine"], kinds)
    finally:
        if out:
            out.delete(probe)


def _check_node(seen: dict, address: str, own: dict[str, str], out: Storage | None) -> None:
    name, versions = f"node {seen['host']} ({address})", seen["software"]
    if seen["problem"]:
        raise ValueError(f"{name} {seen['problem']}")
    if not seen["sees"]:
        raise ValueError(
            f"{name} does not see {out.root}: OUT must be on storage that every node shares, or s3://"
        )
    if seen["missing"]:
        raise ValueError(
            f"{name} does not see the audio at {seen['missing'][0]}: mount it there, or use s3://"
        )
    other = [f"{k} {versions.get(k)} (here {v})" for k, v in own.items() if versions.get(k) != v]
    if other:
        raise ValueError(
            f"{name} has {', '.join(other)}: labels repeat only with the same versions everywhere"
        )
