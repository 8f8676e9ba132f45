"""One actor in this process: what it makes of a row, of a shard that fails and of a worker that cannot be
opened."""

import json
import platform

import pytest

from cluster.sharded import Actor, StageSpec
from tests.cluster.fakes import Later, finished

HERE = platform.node()


def worked(ledger, worker, *rows: dict, attempts: int = 3) -> list[dict]:
    """Rows as an actor of the stage `codes` passes them on."""
    actor = Actor(StageSpec("codes", lambda: worker), Later(ledger), attempts)
    return [json.loads(text) for text in actor({"row": [json.dumps(row) for row in rows]})["row"]]


def test_each_row_gets_the_status_of_its_stage(ledger):
    statuses = {"s0": "finished", "s1": "skipped"}
    rows = worked(
        ledger,
        lambda shard: finished(shard) | {"status": statuses[shard]},
        {"shard": "s0", "decode": "finished"},
        {"shard": "s1"},
    )
    assert rows == [
        {"shard": "s0", "decode": "finished", "codes": "finished"},
        {"shard": "s1", "codes": "skipped"},
    ]
    ends = [{k: v for k, v in event.items() if k != "started"} for event in ledger.drain()]
    assert ends == [
        event
        for shard, status in statuses.items()
        for event in (
            {"event": "begin", "stage": "codes", "shard": shard, "host": HERE},
            {"event": "end", "shard": shard, "stage": "codes", "status": status, "attempts": 1},
        )
    ]


def test_a_shard_that_failed_before_is_passed_on_untouched(ledger):
    row = {"shard": "s0", "decode": "failed", "failed": "decode", "error": "broken", "fatal": False}
    assert worked(ledger, None, row) == [row]
    assert ledger.drain() == []


@pytest.mark.parametrize(
    ("more", "fatal"),
    [({}, False), ({"disk_full": True}, True), ({"fatal": True}, True), ({"disk_full": False}, False)],
)
def test_a_failed_shard_says_where_and_why_and_whether_all_would_fail(ledger, more, fatal):
    [row] = worked(
        ledger,
        lambda shard: finished(shard) | {"status": "failed", "error": "no space"} | more,
        {"shard": "s0"},
    )
    assert row == {"shard": "s0", "codes": "failed", "failed": "codes", "error": "no space", "fatal": fatal}


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_shard_is_given_up_after_so_many_attempts_and_not_before(ledger, attempts):
    ran = []
    for _ in range(attempts - 1):  # workers that died
        ledger.begin("codes", "s0", HERE)
    [row] = worked(
        ledger, lambda shard: ran.append(shard) or finished(shard), {"shard": "s0"}, attempts=attempts
    )
    assert (
        row == {"shard": "s0", "codes": "finished"}
        and ran == ["s0"]
        and ledger.drain()[-1]["attempts"] == attempts
    )

    for _ in range(attempts):
        ledger.begin("codes", "s1", HERE)
    [row] = worked(ledger, lambda shard: ran.append(shard), {"shard": "s1"}, attempts=attempts)
    said = f"the worker died {attempts} times on this shard (out of memory?)"
    assert row == {
        "shard": "s1",
        "codes": "failed",
        "failed": "codes",
        "error": said,
        "fatal": False,
    } and ran == ["s0"]
    assert ledger.drain()[-1] == {
        "event": "end",
        "shard": "s1",
        "stage": "codes",
        "status": "failed",
        "host": HERE,
        "error": said,
        "attempts": attempts + 1,
    }


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, ImportError])
def test_a_worker_that_cannot_be_opened_ends_the_run(ledger, error):
    def make():
        raise error("no weights")

    actor = Actor(StageSpec("codes", make), Later(ledger), 3)
    rows = [json.loads(text) for text in actor({"row": ['{"shard": "s0"}', '{"shard": "s1"}']})["row"]]
    assert rows == [
        {"shard": s, "codes": "failed", "failed": "codes", "error": "no weights", "fatal": True}
        for s in ("s0", "s1")
    ]
    assert ledger.drain()[1] == {
        "event": "end",
        "shard": "s0",
        "stage": "codes",
        "status": "failed",
        "error": "no weights",
        "fatal": True,
        "attempts": 1,
    }


def test_a_defect_of_ours_is_not_hidden(ledger):
    def worker(shard):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        worked(ledger, worker, {"shard": "s0"})


def test_a_worker_is_opened_once(ledger):
    opened = []
    actor = Actor(StageSpec("codes", lambda: opened.append(1) or finished), Later(ledger), 3)
    for shard in ("s0", "s1"):
        actor({"row": [json.dumps({"shard": shard})]})
    assert opened == [1]
