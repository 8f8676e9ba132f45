"""A scan on a real cluster: the same catalog as on one machine, whatever becomes of a node."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from cluster import plain, probing
from cluster.simulate import simulated
from stages.label.scan.scan import scan
from tests.stages.label.scanned import Scans

# Every Python of the nodes and of their children reads it first. A child tells of which node it is, dies of
# one file, and waits at each until the gate is there.
SITE = """
import builtins, os, signal, sys, time
if "stages.label.decoding.child" in sys.orig_argv:
    real = builtins.open
    def opening(path, *a, **k):
        if isinstance(path, bytes) and path.endswith(b".wav"):
            node, name = os.environ.get("RAY_RAYLET_PID", "here"), os.path.basename(path).decode()
            with real({log!r}, "a") as log:
                log.write(f"{{node}} {{name}} {{os.getpid()}}\\n")
            if path.endswith(b"hostile.wav"):
                os.kill(os.getpid(), signal.SIGSEGV)
            while {gate!r} and not os.path.exists({gate!r}):
                time.sleep(0.05)
        return real(path, *a, **k)
    builtins.open = opening
"""


@pytest.fixture
def library(tmp_path, monkeypatch) -> Scans:
    scans = Scans(tmp_path)
    for number in range(60):
        scans.write(f"{number}.wav", number, seconds=0.01)
    scans.write("hostile.wav", 99)
    shutil.copy(scans.music / "1.wav", scans.music / "copy.wav")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(probing, "BATCH", 4)
    return scans


def site(tmp_path: Path, gate: Path | str = "") -> Path:
    log = tmp_path / "probed"
    log.write_text("")
    (tmp_path / "sitecustomize.py").write_text(SITE.format(log=str(log), gate=str(gate)))
    return log


def scanned(scans: Scans, runner, name: str) -> bytes:
    def probe_all(files, workers):
        return runner.probe_all(files, workers, [str(scans.music)])

    scan([str(scans.music)], None, scans.catalog.with_name(name), workers=2, probe_all=probe_all)
    return scans.catalog.with_name(name).read_bytes()


def nodes(log: Path) -> set[str]:
    return {line.split()[0] for line in log.read_text().splitlines()}


def test_nodes_share_a_scan_and_one_that_is_lost_changes_nothing(library, tmp_path, monkeypatch):
    log = site(tmp_path)
    alone = scanned(library, plain, "alone.parquet")
    assert nodes(log) == {"here"}
    with simulated(2, 1) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        log = site(tmp_path)
        assert scanned(library, probing, "shared.parquet") == alone
        two = nodes(log)
        assert len(two) == 2 and "here" not in two
        assert log.read_text().count("hostile") == 2, "it cost itself: tried again once"

        log = site(tmp_path, tmp_path / "gate")
        third = cluster.add_node(num_cpus=1)

        def lose() -> None:
            while len(nodes(log)) < 3:  # each is in the middle of a batch
                time.sleep(0.05)
            cluster.remove_node(third, allow_graceful=False)
            lines = [line.split() for line in log.read_text().splitlines()]
            while any(os.path.exists(f"/proc/{pid}") for node, _, pid in lines if node not in two):
                time.sleep(0.05)  # a worker outlives its node for a moment, and might still answer
            (tmp_path / "gate").touch()

        losing = threading.Thread(target=lose)
        losing.start()
        assert scanned(library, probing, "lost.parquet") == alone
        losing.join()
        tried = [line.split()[1] for line in log.read_text().splitlines()]
        assert sorted(set(tried)) == sorted(p.name for p in library.music.iterdir())
        assert len(nodes(log)) == 3 and len(tried) > len(set(tried)) + 1, "what it had begun was read again"
