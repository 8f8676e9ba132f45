"""A worker killed at every step of finishing a shard: the next one makes the same bytes, and nothing
half-written ever has a real name."""

import hashlib
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.label import recipe as recipes
from stages.label.audit import damaged
from stages.label.plan import plan
from stages.label.scan.scan import scan
from stages.label.shard import Job, ShardWorker
from stages.shards import catalog
from stages.shards import record as records
from stages.shards.storage import Storage
from tests.conftest import ROOT


def prepare(out: Path, audio: Path) -> str:
    """Scan and plan; returns the one shard."""
    out.mkdir()
    scan([str(audio)], None, out / "catalog.parquet", workers=1)
    plan(None, out / "catalog.parquet", out / "plan.parquet", shard_minutes=60, validation_share=0.1)
    [shard] = catalog.shard_slices(catalog.live(catalog.read_plan(out / "plan.parquet")))
    return shard


def jobs(out: Path) -> list[Job]:
    recipe = recipes.Recipe()
    audio = recipes.audio_recipe(recipe)
    own = recipes.cqt_recipe(recipe, records.recipe8(audio))
    return [
        Job(recipe.decode, "audio", "audio", audio, str(out)),
        Job(recipe.cqt, "cqt-test", "audio", own, str(out)),
    ]


def digests(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted((out / "columns").rglob("*"))
        if p.is_file() and not p.name.endswith(".json")
    }


def die(job: Path, shard: str, step: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos.dying_worker", str(job), shard, str(step)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, excerpts) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for path in sorted(excerpts.iterdir())[:2]:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    shard = prepare(out, corpus)
    for job in jobs(out):
        assert ShardWorker(job)(shard)["status"] == "finished"
    return digests(out)


@pytest.mark.parametrize("column", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["audio", "cqt"])
def test_killed_at_every_step_the_bytes_are_the_same(tmp_path, corpus, undisturbed, column):
    out = tmp_path / "out"
    shard = prepare(out, corpus)
    storage, job = Storage(str(out)), jobs(out)[column]
    for earlier in jobs(out)[:column]:
        ShardWorker(earlier)(shard)
    pickled = tmp_path / "job"
    pickled.write_bytes(pickle.dumps(job))
    kills, step = 0, 1
    while (ended := die(pickled, shard, step)).returncode == -signal.SIGKILL:
        kills += 1
        name = records.file(job.column, shard, "json")
        if storage.exists(name):  # finished says: whole
            assert not damaged(storage, shard, [job.column])
            records.discard(storage, job.column, shard)
        real = {p.name.split(".")[-1] for p in (out / "columns" / job.column).glob(f"{shard}.*")}
        assert real <= {"tar", "parquet"}
        step += 1 if step < 3 or column else 2
    assert ended.returncode == 0, ended.stderr
    assert kills >= 8  # 4 files, before and after each, at the least
    assert digests_of(out, job.column) == {k: v for k, v in undisturbed.items() if f"/{job.column}/" in k}


def digests_of(out: Path, column: str) -> dict[str, str]:
    Storage(str(out)).sweep(f"columns/{column}")
    return {k: v for k, v in digests(out).items() if f"/{column}/" in k}
