"""OUT and audio on an object store: the bytes are those of a local OUT, and one run at a time."""

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from stages.shards.storage import Storage
from tests.conftest import SMALL, command, tars
from tests.object_store import served

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store():
    """The environment of an S3 server on a real port, for this process and for Ray's workers."""
    with served("music", "labels") as environment:
        yield environment


@pytest.fixture(scope="module")
def config(store, excerpts, tmp_path_factory) -> Path:
    music = Storage("s3://music/mine")
    for path in excerpts.iterdir():
        music.write(path.name, path.read_bytes())
    path = tmp_path_factory.mktemp("s3") / "small.yaml"
    path.write_text(SMALL.format(audio=json.dumps("s3://music/mine"), out=json.dumps("s3://labels/out")))
    return path


def objects(storage: Storage) -> dict[str, int]:
    """Name → time of writing, of every object below OUT but the log."""
    infos = storage.fs.get_file_info(pafs.FileSelector(storage.base, recursive=True))
    return {
        i.path[len(storage.base) + 1 :]: i.mtime_ns
        for i in infos
        if i.is_file and not i.path.endswith(".jsonl")
    }


def log(storage: Storage) -> list[str]:
    """Lines of all its parts."""
    return [
        line for n in sorted(storage.names("log")) for line in storage.read(f"log/{n}").decode().splitlines()
    ]


def test_labels_on_s3(store, config, labelled, run_overtone, tmp_path):
    out = Storage("s3://labels/out")
    argv, options = command("labels", str(config))
    with open(tmp_path / "said", "w+") as said:
        first = subprocess.Popen(argv, **options, stdout=said, stderr=subprocess.STDOUT)
        while not out.exists("run.lock") or json.loads(out.read("run.lock"))["pid"] != first.pid:
            assert first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.2)
        second = run_overtone("labels", config)
        assert first.poll() is None, (
            "the first ended before the second could be refused: " + (tmp_path / "said").read_text()
        )
        assert second.returncode == 2 and f"process {first.pid} on {os.uname().nodename}" in second.stderr
        assert first.wait(300) == 0, (tmp_path / "said").read_text()

    written = objects(out)
    assert json.loads(out.read("run.lock"))["free"], "the lock must be given back"
    found = {n: hashlib.sha256(out.read(n)).hexdigest() for n in written if n.endswith(".tar")}
    assert found == tars(labelled)
    assert {
        "catalog.parquet",
        "plan.parquet",
        "rejected.parquet",
        "recipe.yaml",
        "index.parquet",
        "segments.parquet",
        "shards.parquet",
    } <= set(written)
    events = [json.loads(line)["event"] for line in log(out)]
    assert events[0] == "start" and events[-1] == "end"

    again = run_overtone("labels", config)
    assert again.returncode == 0, again.stderr
    after = objects(out)
    assert {n: t for n, t in after.items() if n.startswith(("columns/", "teachers/"))} == {
        n: t for n, t in written.items() if n.startswith(("columns/", "teachers/"))
    }
    assert run_overtone("verify", "s3://labels/out").returncode == 0
    assert json.loads(run_overtone("status", "s3://labels/out", "--json").stdout)["finished"]
    merged = run_overtone("merge", "s3://labels/out", "--to", "s3://labels/merged")
    assert merged.returncode == 0 and len(objects(Storage("s3://labels/merged"))) == len(tars(labelled)) // 3


@pytest.mark.parametrize(
    ("root", "said"), [("s3://nobody", "no such bucket"), ("s3://music/nothing", "no such bucket or prefix")]
)
def test_a_bucket_that_is_not_there(store, config, run_overtone, tmp_path, root, said):
    done = run_overtone("labels", config, "--audio", root, "--out", tmp_path / "out")
    assert (
        done.returncode == 2
        and said in done.stderr.lower()
        and root in done.stderr
        and "Traceback" not in done.stderr
    )


def test_an_out_whose_bucket_is_not_there(store, config, run_overtone):
    done = run_overtone("labels", config, "--out", "s3://nowhere/out")
    assert (
        done.returncode == 2
        and "s3://nowhere/out cannot be written" in done.stderr
        and "Traceback" not in done.stderr
    )
