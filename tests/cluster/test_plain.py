"""Stages in plain processes: rows and events as on Ray, dead workers, defects, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster import plain
from cluster.plain import Process, run_chain, run_one_reporting
from cluster.pools import Session, StageSpec, shares
from stages.label.base import Needs
from tests.chaos.processes import descendants, wait
from tests.conftest import ROOT

TWO = Session(2, 0, 2, 16 * 2**30)


@dataclass(frozen=True)
class Work:
    """A worker that finishes every shard but those that are named."""

    stage: str
    deadly: str | None = None  # its process dies
    torn: str | None = None
    defect: str | None = None
    once: str | None = None  # a file: without it the deadly shard makes it and kills, with it it is harmless

    def __call__(self) -> Callable[[str], dict]:
        return self.run

    def run(self, shard: str) -> dict:
        if shard == self.deadly and not (self.once and os.path.exists(self.once)):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == self.defect:
            raise KeyError("a defect")
        row = {"shard": shard, "stage": self.stage, "status": "finished", "process": os.getpid()}
        return row | ({"status": "failed", "error": "torn"} if shard == self.torn else {})


def ran(*works: Work, attempts: int = 3, shards: int = 3) -> tuple[dict[str, dict], list[dict]]:
    """Rows by shard, and the events."""
    events: list[dict] = []
    links = [StageSpec(work.stage, work) for work in works]
    rows = list(run_chain(links, [f"s{i}" for i in range(shards)], TWO, attempts, events.append))
    assert len(rows) == shards and not descendants_of_plain()
    return {row["shard"]: row for row in rows}, events


def descendants_of_plain() -> list[str]:
    return [name for name in descendants(os.getpid()).values() if "spawn_main" in name]


def test_each_shard_leaves_the_chain_once_with_what_became_of_it():
    rows, events = ran(Work("one", torn="s1"), Work("two"))
    assert rows == {
        "s0": {"shard": "s0", "one": "finished", "two": "finished"},
        "s1": {"shard": "s1", "one": "failed", "failed": "one", "error": "torn", "fatal": False},
        "s2": {"shard": "s2", "one": "finished", "two": "finished"},
    }
    for kind in ("begin", "end"):
        seen = sorted((e["stage"], e["shard"]) for e in events if e["event"] == kind)
        assert seen == [("one", "s0"), ("one", "s1"), ("one", "s2"), ("two", "s0"), ("two", "s2")]
    assert {e["attempts"] for e in events if e["event"] == "end"} == {1}
    assert os.getpid() not in {e["process"] for e in events if "process" in e}


def test_a_shard_whose_worker_dies_is_tried_again(tmp_path):
    rows, events = ran(Work("one", deadly="s1", once=str(tmp_path / "once")), Work("two"))
    assert all(row["two"] == "finished" for row in rows.values())
    assert [e["attempts"] for e in events if e["event"] == "end" and e["stage"] == "one"].count(2) == 1
    assert [e["shard"] for e in events if e["event"] == "begin" and e["stage"] == "one"].count("s1") == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_shard_that_kills_its_worker_is_given_up(attempts):
    rows, events = ran(Work("one", deadly="s1"), Work("two"), attempts=attempts)
    said = f"the worker died {attempts} times on this shard (out of memory?)"
    assert rows["s1"] == {"shard": "s1", "one": "failed", "failed": "one", "error": said, "fatal": False}
    assert rows["s0"]["two"] == rows["s2"]["two"] == "finished"
    assert [e["shard"] for e in events if e["event"] == "begin"].count("s1") == attempts


def test_a_defect_of_ours_keeps_its_traceback_and_leaves_no_process():
    links = [StageSpec("one", Work("one", defect="s1")), StageSpec("two", Work("two"))]
    with pytest.raises(KeyError, match="a defect") as error:
        list(run_chain(links, ["s0", "s1", "s2"], TWO))
    assert "in run\n" in error.value.__notes__[0]
    assert not descendants_of_plain()


def unopened():
    raise ValueError("no weights")


def test_a_worker_that_cannot_be_opened_ends_the_run():
    rows = list(run_chain([StageSpec("one", unopened)], ["s0", "s1"], TWO))
    assert [(row["error"], row["fatal"]) for row in rows] == [("no weights", True)] * 2


def test_who_stops_early_leaves_no_process():
    rows = run_chain([StageSpec("one", Work("one")), StageSpec("two", Work("two"))], ["s0", "s1"], TWO)
    next(rows)
    assert descendants_of_plain()
    rows.close()
    assert not descendants_of_plain()


def test_a_worker_that_died_while_idle_is_replaced():
    crew = plain.Crew(TWO)
    spec = StageSpec("one", Work("one"))
    worker = crew.start(spec, 1, crew.nodes()[0])
    worker.process._process.kill()
    worker.process._process.join()
    assert not worker.begin("s0", None)
    worker.close()


# How processes are shared out.

FOUR = [
    StageSpec(name, Work(name), Needs(cpus, gpus, memory_gb=1), cpu_s=cpu_s)
    for name, cpus, gpus, cpu_s in (
        ("decode", 1, 0, 3),
        ("codes", 1, 0, 8),
        ("cqt", 1, 0, 2),
        ("audit", 0.5, 0, 0.5),
    )
]


@pytest.mark.parametrize(
    ("cpus", "memory_gb", "expected"),
    [
        (1, 64, [1, 1, 1, 1]),
        (2, 64, [1, 2, 1, 1]),  # as size_pools has it for Ray
        (16, 64, [4, 9, 2, 2]),  # by 3/n, 8/n and 2/n; the last half CPU is enough for audit only
        (16, 6, [1, 3, 1, 1]),  # no memory for others
        (16, 1, [1, 1, 1, 1]),  # one of each in any case
    ],
)
def test_workers_go_where_each_has_most_to_do(cpus, memory_gb, expected):
    assert shares(FOUR, Session(cpus, 0, cpus, memory_gb * 2**30)) == expected


def test_a_gpu_is_shared_as_its_stages_ask():
    links = [FOUR[0], *(FOUR[i]._replace(needs=Needs(1, 0.25, 1)) for i in (1, 2))]
    counts = shares(links, Session(16, 1, 16, 64 * 2**30))
    assert counts[1] + counts[2] == 4 and counts[1] == 3
    assert shares(links, Session(16, 0, 16, 64 * 2**30))[1:] == [0, 0]  # until a node with one joins


def test_a_pool_does_not_outgrow_what_its_stage_allows():
    assert shares([FOUR[1]._replace(max_workers=2)], Session(16, 0, 16, 64 * 2**30)) == [2]


def test_a_worker_gets_the_fullest_gpu_with_room(monkeypatch):
    made = []

    class Begun:
        def __init__(self, target, *args, cpus, card):
            self.card = card
            made.append(card)

        def close(self, patience_s):
            pass

    monkeypatch.setattr(plain, "Process", Begun)
    crew = plain.Crew(Session(8, 3, 8, 0))
    half, whole, none = (StageSpec(f"s{gpus}", None, Needs(1, gpus)) for gpus in (0.5, 1.0, 0.0))
    workers = [crew.start(spec, 1, crew.nodes()[0]) for spec in (half, whole, half, none, half)]
    assert made == [0, 1, 0, None, 2]
    workers[1].close()
    crew.start(whole, 1, crew.nodes()[0])
    assert made[5:] == [1]


def seen(report) -> tuple[str, str | None, bool]:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return *map(os.environ.get, names), blocked


@pytest.mark.parametrize(("visible", "card"), [(None, "0"), ("3,5", "3")])
def test_a_process_has_the_threads_and_the_gpu_that_it_asked_for(monkeypatch, visible, card):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run_one_reporting(seen, print, cpus=2.5, gpus=1) == ("2", card, True)  # Ctrl-C is the driver's
    assert run_one_reporting(seen, print, cpus=0.3) == ("1", visible, True)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible and "OMP_NUM_THREADS" not in os.environ
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_one_reporting(seen, print, cpus=1)[0] == "7"


# One function in a process.


def summed(values, report):
    report({"of": len(values)})
    if not values:
        raise ValueError("nothing to sum")
    return sum(values), os.getpid()


def test_a_function_runs_in_another_process_reports_and_raises_its_own_errors():
    events = []
    value, process = run_one_reporting(summed, events.append, [1, 2, 3], cpus=1)
    assert value == 6 and process != os.getpid() and events == [{"of": 3}]
    with pytest.raises(ValueError, match="nothing to sum"):
        run_one_reporting(summed, events.append, [], cpus=1)
    assert events == [{"of": 3}, {"of": 0}] and not descendants_of_plain()


def dying(path: str, deaths: int, report):
    with open(path, "a") as file:
        file.write("x")
    if len(Path(path).read_text()) <= deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_a_function_whose_process_dies_runs_again(tmp_path):
    assert run_one_reporting(dying, print, str(tmp_path / "a"), 3, cpus=1) == "done"
    with pytest.raises(OSError, match="process of dying died 4 times"):
        run_one_reporting(dying, print, str(tmp_path / "b"), 9, cpus=1)


# The driver's end.


def waiting(pipe, path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    threading.Event().wait()


DRIVER = """
import sys, threading
from cluster.plain import Process
from tests.cluster.test_plain import waiting
process = Process(waiting, sys.argv[1], cpus=1, card=None)
threading.Event().wait()
"""


def test_processes_die_with_their_driver_in_the_midst_of_their_work(tmp_path):
    path = tmp_path / "process"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(path)], cwd=ROOT)
    try:
        assert wait(lambda: path.exists() and path.read_text(), driver)
        worker = int(path.read_text())
        os.kill(worker, 0)
    finally:
        driver.kill()
        driver.wait()
    pidfd_gone(worker)


def pidfd_gone(process: int) -> None:
    """Returns when it has ended; AssertionError after a minute."""
    import select

    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    with os.fdopen(handle):
        assert select.select([handle], [], [], 60)[0], f"process {process} outlives its driver"


def test_a_process_whose_driver_is_dead_already_does_nothing(tmp_path):
    path = tmp_path / "process"
    plain._begin(0, None, waiting, str(path))  # 0 is nobody's parent
    assert not path.exists()


def test_a_process_can_be_closed_twice(tmp_path):
    process = Process(waiting, str(tmp_path / "process"), cpus=1, card=None)
    process.close()
    process.close()
    assert not process.alive()
