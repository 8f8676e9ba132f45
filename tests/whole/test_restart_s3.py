"""A run of 2,000 shards on S3, killed at 90 %: what its restart reads, by the store's own count."""

import json
import signal
import subprocess
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from stages.shards.storage import Storage
from tests.conftest import command
from tests.object_store import Faults, served

SHARDS, DONE = 2000, 1800
CONFIG = """
recipe:
  plan: {{shard_minutes: 0.01, validation_share: 0.1}}
  codes: {{teacher: "tests.pipeline.labelling.odd_teachers:Odd"}}
  cqt: null
run: {{audio: {audio}, out: s3://labels/out}}
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def music(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(SHARDS):
        with wave.open(str(folder / f"{number:04}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(24_000)
            file.writeframes(rng.integers(-9000, 9000, 4 * 24_000).astype("<i2").tobytes())


def test_a_restart_reads_what_is_missing_and_one_listing_a_column(tmp_path):
    folder = tmp_path / "music"
    folder.mkdir()
    music(folder)
    (tmp_path / "labels.yaml").write_text(CONFIG.format(audio=json.dumps(str(folder))))
    faults = Faults()
    with served("labels", faults=faults):
        argv, options = command("labels", str(tmp_path / "labels.yaml"), "--plain", TMPDIR=str(tmp_path))
        out = Storage("s3://labels/out")
        run = subprocess.Popen(argv, **options, stdout=subprocess.DEVNULL)
        while faults.made("audited") < DONE:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
        columns = sorted(out.names("columns"))
        before = {
            f"{c}/{n}": out.size(f"columns/{c}/{n}") for c in columns for n in out.names(f"columns/{c}")
        }
        notes = [name for folder in out.names("audited") for name in out.names(f"audited/{folder}")]
        assert DONE <= len(notes) < DONE + 50
        faults.given.clear()
        faults.listed.clear()
        again = subprocess.run(argv, **options, capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        given = {name: count for name, count in faults.given.items() if name.startswith("/labels/out/")}
        listed = dict(faults.listed)  # before this test lists, too
        after = {f"{c}/{n}": out.size(f"columns/{c}/{n}") for c in columns for n in out.names(f"columns/{c}")}
    done = {name.removesuffix(".json") for name in notes}
    missing = sum(size for n, size in after.items() if n.split("/")[1].split(".")[0] not in done)

    assert sum(given.values()) <= 1.1 * missing
    assert [listed[f"out/columns/{column}/"] for column in columns] == [1, 1]
    assert len([name for name in after if name.endswith(".tar")]) == 2 * SHARDS
    assert {n: s for n, s in after.items() if n in before and n.endswith(".tar")} == {
        n: s for n, s in before.items() if n.endswith(".tar")
    }
