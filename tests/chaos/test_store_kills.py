"""Labels on an object store that refuses one request in twenty, through SIGKILL of drivers, workers and whole
nodes at each kind of write: the same bytes as undisturbed on a local disk. Together `KILLS` at the least."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cluster.simulate import simulated
from stages.shards.storage import Storage
from tests.chaos.killer import Killer
from tests.chaos.processes import descendants, kill
from tests.conftest import ROOT, SMALL, command, tars
from tests.object_store import Faults, served

PLAIN, RAY = 45, {"node": 10, "worker": 6, "driver": 5}  # kills, of 60 together
assert sum(RAY.values()) + PLAIN >= 60

# Whom a run on Ray loses at the first write of such a thing that a worker is about to make.
LOSSES = {
    "node": ("tar", "json", "stats.parquet"),
    "worker": ("index.parquet", "audited"),
    "driver": ("json", "audited"),
}


class Runs:
    """The same command over and over, on a store that fails, until nobody is killed any more."""

    def __init__(self, tmp_path: Path, excerpts: Path, out: Storage, killer: Killer, expected: dict):
        self.out, self.killer, self.expected, self.tmp = out, killer, expected, tmp_path / "tmp"
        self.tmp.mkdir()
        self.config, self.said = tmp_path / "small.yaml", tmp_path / "said"
        text = SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(out.root))
        self.config.write_text(f"{text}  attempts: 100\n")

    def until_unharmed(
        self, *options: str, roots: tuple[int, ...] = (), meanwhile: Callable = time.sleep, **more: str
    ):
        while True:
            before = sum(self.killer.done.values())
            meanwhile(0)
            argv, how = command("labels", str(self.config), *options, TMPDIR=str(self.tmp), **more)
            with open(self.said, "w") as said:
                run = psutil.Popen(argv, **how, stdout=said, stderr=subprocess.STDOUT)
                self.killer.watch(run, roots)
                deadline = time.monotonic() + 900
                while run.poll() is None:
                    assert time.monotonic() < deadline, self.said.read_text()
                    meanwhile(0.05)
                self.killer.watch(None)
            text = self.said.read_text()
            # A node's first look is tried twice: one start in a hundred is refused by such a store.
            refused = "cannot read from the store" in text and "SlowDown" in text
            assert run.returncode in (0, -signal.SIGKILL) or refused, text
            if run.returncode == 0:
                found = {n: hashlib.sha256(self.out.read(n)).hexdigest() for n in self._names(".tar")}
                assert found == self.expected
                if sum(self.killer.done.values()) == before:
                    return
                for name in self._names(""):  # begin again
                    self.out.delete(name)

    def _names(self, ending: str) -> list[str]:
        import pyarrow.fs as pafs

        infos = self.out.fs.get_file_info(pafs.FileSelector(self.out.base, True, True))
        names = [info.path[len(self.out.base) + 1 :] for info in infos if info.is_file]
        return sorted(name for name in names if name.endswith(ending))

    def left(self) -> list[Path]:
        """Temporary files that the next process of overtone on this machine does not remove."""
        look = "from stages.shards import scratch; scratch.folder()"
        env = os.environ | {"TMPDIR": str(self.tmp)}
        subprocess.run([sys.executable, "-c", look], cwd=ROOT, env=env, check=True)
        return [p for p in Path(self.tmp, f"overtone-{os.getuid()}").rglob("*") if p.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_drivers_and_workers_killed_at_each_kind_of_write(excerpts, labelled, tmp_path):
    def once(killer: Killer, who: str, step: str) -> str | None:
        """A worker at its own writes; the driver at its own, and at those of workers that end something."""
        whoms = (who, "driver") if step.endswith(("json", "tar", "audited", "safetensors")) else (who,)
        return next((whom for whom in dict.fromkeys(whoms) if not killer.done[whom, step]), None)

    faults, killer = Faults(0.05), Killer("kills/out", once)
    faults.before = killer
    with served("kills", faults=faults):
        runs = Runs(tmp_path, excerpts, Storage("s3://kills/out"), killer, tars(labelled))
        runs.until_unharmed("--plain")
    print(dict(killer.done))
    assert killer.count("driver") >= 20 and killer.count("worker") >= 10 and faults.refused > 50
    assert sum(killer.done.values()) >= PLAIN
    assert not runs.left()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nodes_of_a_ray_cluster_killed_with_all_that_runs_on_them(excerpts, labelled, tmp_path, monkeypatch):
    """And workers and drivers. For each node that is lost, one joins."""

    def due(killer: Killer, who: str, step: str) -> str | None:
        """Those first of which fewest were killed; at a step twice, so that all columns have their turn."""
        rest = [whom for whom in sorted(RAY, key=killer.count) if killer.count(whom) < RAY[whom]]
        steps = {whom for whom in rest if step.endswith(LOSSES[whom]) and killer.done[whom, step] < 2}
        fits = (whom for whom in rest if whom in steps and step.startswith("put"))
        return next(fits, None) if who == "worker" else None

    faults, killer = Faults(0.05), Killer("nodes/out", due)
    faults.before = killer
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # noqa: S108 - of sockets, whose paths are short
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with served("nodes", faults=faults), simulated(3, 2) as cluster:
        gone = []

        def lose(pid: int) -> bool:
            """The node of this worker; another one where that is the head's, without which there is no
            cluster."""
            raylets = {node: raylet(node) for node in cluster.worker_nodes if node not in gone}
            node = next(
                (n for n, own in raylets.items() if pid in descendants(own)), next(iter(raylets), None)
            )
            if node is None:
                return False
            gone.append(node)
            below = descendants(raylets[node])
            return sum([kill(each) for each in (raylets[node], *below)]) > 1

        def replace(pause_s: float) -> None:
            time.sleep(pause_s)
            for node in cluster.worker_nodes.intersection(gone):
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(num_cpus=2)
                cluster.wait_for_nodes(120)  # until Ray knows that it is lost

        def raylet(node) -> int:
            return node.all_processes["raylet"][0].process.pid

        killer.means["node"] = lose
        runs = Runs(tmp_path, excerpts, Storage("s3://nodes/out"), killer, tars(labelled))
        runs.until_unharmed(roots=(os.getpid(),), meanwhile=replace, RAY_ADDRESS=cluster.address)
    print(dict(killer.done))
    assert {whom: killer.count(whom) for whom in RAY} == RAY and faults.refused > 20
    assert not runs.left()
