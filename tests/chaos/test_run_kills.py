"""SIGKILL of the driver, of a worker, of a Ray node; while fitting, decoding, labelling: run again, and
the bytes are those of an undisturbed run."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from cluster.simulate import simulated
from tests.chaos.processes import descendants, kill, wait
from tests.conftest import SMALL, command, records, tars


def events(out: Path) -> list[dict]:
    path = out / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def config(tmp_path_factory, excerpts):
    def make(name: str) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(name)
        path = folder / "small.yaml"
        path.write_text(SMALL.format(audio=json.dumps(str(excerpts)), out=json.dumps(str(folder / "out"))))
        return path, folder / "out"

    return make


def start(config: Path, *more: str, **environment: str) -> subprocess.Popen:
    argv, options = command("labels", str(config), *more, **environment)
    return subprocess.Popen(
        argv, **options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def finish(process: subprocess.Popen, timeout: float = 240) -> None:
    text, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, text


@pytest.fixture(scope="module")
def undisturbed(labelled) -> Path:
    return labelled  # the same music by the same recipe


def assert_same(out: Path, undisturbed: Path) -> None:
    assert tars(out) == tars(undisturbed)
    assert records(out) == records(undisturbed)
    assert not list(out.rglob(".attempt-*"))


def happened(out: Path, event: str, **facts) -> bool:
    return any(e["event"] == event and all(e.get(k) == v for k, v in facts.items()) for e in events(out))


@pytest.mark.parametrize(
    "how", [(), pytest.param(("--plain",), marks=pytest.mark.slow)], ids=["ray", "plain"]
)
def test_the_driver_killed_while_fitting_and_while_labelling(config, undisturbed, how):
    path, out = config("driver")
    kills = 0
    for seen in (
        lambda: happened(out, "fit", phase="train"),
        lambda: happened(out, "shard-begin", stage="codes"),
        lambda: list(out.glob("columns/cqt-*/*.json")),
    ):
        process = start(path, *how)
        if wait(seen, process):
            below = [psutil.Process(pid) for pid in descendants(process.pid)] if how else []
            kills += kill(process.pid)
            assert not psutil.wait_procs(below, 60)[1], "they outlive their driver"
        process.wait()
    assert kills >= 2
    finish(start(path, *how))
    assert_same(out, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--plain",)], ids=["ray", "plain"])
def test_workers_killed_while_they_work(config, undisturbed, how):
    path, out = config("worker")
    process, kills = start(path, *how), 0
    for seen in (
        lambda: happened(out, "shard-begin", stage="decode"),
        lambda: happened(out, "shard-begin", stage="cqt"),
    ):
        if wait(seen, process):
            names = descendants(process.pid).items()
            workers = [pid for pid, name in names if "ray::Actor" in name or "spawn_main" in name]
            kills += sum(kill(pid) for pid in workers[:2])
    finish(process)
    assert kills > 0
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_a_node_killed_midway(config, undisturbed):
    path, out = config("node")
    with simulated(2) as cluster:
        process = start(path, RAY_ADDRESS=cluster.address)
        try:
            assert wait(lambda: happened(out, "shard-end", stage="cqt"), process)
            workers = len([n for n in cluster.list_all_nodes()])
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            assert len(cluster.list_all_nodes()) == workers - 1
            finish(process)
        finally:
            process.kill()
    assert_same(out, undisturbed)
