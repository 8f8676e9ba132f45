"""Labels on an object store that refuses one request in twenty, through kills of the driver and its workers
at one write after the other: the same bytes as undisturbed on a local disk."""

import hashlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from stages.shards.storage import Storage
from tests.chaos.processes import descendants, kill
from tests.conftest import SMALL, command, tars
from tests.object_store import Faults, served

KILLS = 30
WRITES = ("PUT", "POST", "DELETE")


class Killer:
    """Kills a run at its so many-th write, before the store has done it."""

    def __init__(self):
        self.lock, self.process, self.left, self.whom = threading.Lock(), None, 0, ""
        self.killed = {"driver": 0, "worker": 0}

    def watch(self, process: subprocess.Popen, writes: int, whom: str) -> None:
        with self.lock:
            self.process, self.left, self.whom = process, writes, whom

    def __call__(self, method: str, path: str) -> None:
        with self.lock:
            if self.process is None or method not in WRITES or path.endswith("run.lock"):
                return
            self.left -= 1
            if self.left:
                return
            workers = [pid for pid, name in descendants(self.process.pid).items() if "spawn_main" in name]
            if self.whom == "worker" and workers:
                self.killed["worker"] += kill(workers[-1])
            else:
                self.killed["driver"] += kill(self.process.pid)
            self.process = None


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_at_every_write_of_a_failing_store_change_no_byte(excerpts, labelled, tmp_path):
    faults, killer = Faults(0.05), Killer()
    faults.before = killer
    with served("kills", faults=faults):
        config, out = tmp_path / "small.yaml", Storage("s3://kills/out")
        config.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(out.root)))
        writes = 1
        while True:
            argv, options = command("labels", str(config), "--plain", TMPDIR=str(tmp_path))
            with open(tmp_path / "said", "w+") as said:
                run = subprocess.Popen(argv, **options, stdout=said, stderr=subprocess.STDOUT)
                if sum(killer.killed.values()) < KILLS:
                    killer.watch(run, writes, ("driver", "worker")[writes % 2])
                code = run.wait(300)
                killer.watch(None, 0, "")
            text = (tmp_path / "said").read_text()
            assert code in (0, -signal.SIGKILL), text
            if sum(killer.killed.values()) >= KILLS and code == 0:
                break
            writes += 1
            if code == 0:  # begin again, until it was killed often enough
                for name in sorted(names(out)):
                    out.delete(name)
        assert killer.killed["driver"] >= 5 and killer.killed["worker"] >= 5 and faults.refused > 50
        found = {n: hashlib.sha256(out.read(n)).hexdigest() for n in names(out) if n.endswith(".tar")}
        assert found == tars(labelled)
    left = [path for path in Path(tmp_path, f"overtone-{os.getuid()}").rglob("*") if path.is_file()]
    assert not left, "temporary files of killed processes"


def names(out: Storage) -> list[str]:
    import pyarrow.fs as pafs

    infos = out.fs.get_file_info(pafs.FileSelector(out.base, recursive=True, allow_not_found=True))
    return [info.path[len(out.base) + 1 :] for info in infos if info.is_file]
