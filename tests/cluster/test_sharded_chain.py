"""A chain in this process, with Ray Data's place taken by a loop: what its workers do, and what Ray is asked for."""

import json
import logging
import platform
from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError, RayActorError

from cluster import sharded
from cluster.ledger import Ledger
from cluster.session import Session
from cluster.sharded import Actor, Link, Reporter, fit_pools, run_chain, run_one_reporting
from stages.label.base import Needs
from tests.cluster.fakes import Later, got, plain, raised_in_task

HERE = platform.node()


@pytest.fixture
def ledger(monkeypatch):
    """A ledger in this process, and a Ray whose calls run when they are waited for."""
    ledger = plain(Ledger)()
    monkeypatch.setattr(sharded, "ledger_here", lambda: Later(ledger))
    monkeypatch.setattr(sharded.ray, "get", got)
    return ledger


def finished(shard: str) -> dict:
    return {"shard": shard, "stage": "codes", "status": "finished"}


def worked(ledger, worker, *rows: dict, attempts: int = 3) -> list[dict]:
    """Rows as an actor of the stage `codes` passes them on."""
    actor = Actor(Link("codes", lambda: worker), Later(ledger), attempts)
    return [json.loads(text) for text in actor({"row": [json.dumps(row) for row in rows]})["row"]]


# One actor.

def test_each_row_gets_the_status_of_its_stage(ledger):
    statuses = {"s0": "finished", "s1": "skipped"}
    rows = worked(ledger, lambda shard: finished(shard) | {"status": statuses[shard]}, {"shard": "s0", "decode": "finished"}, {"shard": "s1"})
    assert rows == [{"shard": "s0", "decode": "finished", "codes": "finished"}, {"shard": "s1", "codes": "skipped"}]
    ends = [{k: v for k, v in event.items() if k != "started"} for event in ledger.drain()]
    assert ends == [event for shard, status in statuses.items() for event in (
        {"event": "begin", "stage": "codes", "shard": shard, "host": HERE},
        {"event": "end", "shard": shard, "stage": "codes", "status": status, "attempts": 1})]


def test_a_shard_that_failed_before_is_passed_on_untouched(ledger):
    row = {"shard": "s0", "decode": "failed", "failed": "decode", "error": "broken", "fatal": False}
    assert worked(ledger, None, row) == [row]
    assert ledger.drain() == []


@pytest.mark.parametrize(("more", "fatal"), [({}, False), ({"disk_full": True}, True), ({"fatal": True}, True), ({"disk_full": False}, False)])
def test_a_failed_shard_says_where_and_why_and_whether_all_would_fail(ledger, more, fatal):
    [row] = worked(ledger, lambda shard: finished(shard) | {"status": "failed", "error": "no space"} | more, {"shard": "s0"})
    assert row == {"shard": "s0", "codes": "failed", "failed": "codes", "error": "no space", "fatal": fatal}


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_shard_is_given_up_after_so_many_attempts_and_not_before(ledger, attempts):
    ran = []
    for _ in range(attempts - 1):  # workers that died
        ledger.begin("codes", "s0", HERE)
    [row] = worked(ledger, lambda shard: ran.append(shard) or finished(shard), {"shard": "s0"}, attempts=attempts)
    assert row == {"shard": "s0", "codes": "finished"} and ran == ["s0"] and ledger.drain()[-1]["attempts"] == attempts

    for _ in range(attempts):
        ledger.begin("codes", "s1", HERE)
    [row] = worked(ledger, lambda shard: ran.append(shard), {"shard": "s1"}, attempts=attempts)
    said = f"the worker died {attempts} times on this shard (out of memory?)"
    assert row == {"shard": "s1", "codes": "failed", "failed": "codes", "error": said, "fatal": False} and ran == ["s0"]
    assert ledger.drain()[-1] == {"event": "end", "shard": "s1", "stage": "codes", "status": "failed", "host": HERE, "error": said,
                                  "attempts": attempts + 1}


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, ImportError])
def test_a_worker_that_cannot_be_opened_ends_the_run(ledger, error):
    def make():
        raise error("no weights")

    actor = Actor(Link("codes", make), Later(ledger), 3)
    rows = [json.loads(text) for text in actor({"row": ['{"shard": "s0"}', '{"shard": "s1"}']})["row"]]
    assert rows == [{"shard": s, "codes": "failed", "failed": "codes", "error": "no weights", "fatal": True} for s in ("s0", "s1")]
    assert ledger.drain()[1] == {"event": "end", "shard": "s0", "stage": "codes", "status": "failed", "error": "no weights", "fatal": True,
                                 "attempts": 1}


def test_a_defect_of_ours_is_not_hidden(ledger):
    def worker(shard):
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        worked(ledger, worker, {"shard": "s0"})


def test_a_worker_is_opened_once(ledger):
    opened = []
    actor = Actor(Link("codes", lambda: opened.append(1) or finished), Later(ledger), 3)
    for shard in ("s0", "s1"):
        actor({"row": [json.dumps({"shard": shard})]})
    assert opened == [1]


# The whole chain.

class Rows:
    """Ray Data's dataset, as a loop in this process."""

    def __init__(self, items, fails=None):
        self.items, self.fails, self.asked = items, fails, []

    def map_batches(self, actor, fn_constructor_args, batch_size, **options):
        assert batch_size is None  # a block goes on as a whole
        self.asked.append((fn_constructor_args[0].name, options))
        made = actor(*fn_constructor_args)
        self.items = [{"row": made({"row": [item["row"]]})["row"][0]} for item in self.items]
        return self

    def iter_rows(self):
        yield self.items[0]
        if self.fails:
            raise self.fails
        yield from self.items[1:]


@pytest.fixture
def data(ledger, monkeypatch):
    """What `run_chain` asks of Ray Data: `made` datasets, with their blocks; the next one fails with `fails`."""
    found = SimpleNamespace(made=[], blocks=[], fails=None, context=SimpleNamespace(execution_options=SimpleNamespace()))

    def from_items(items, override_num_blocks):
        found.made.append(Rows(items, found.fails))
        found.blocks.append(override_num_blocks)
        return found.made[-1]

    monkeypatch.setattr(sharded.ray.data, "from_items", from_items)
    monkeypatch.setattr(sharded.ray.data, "DataContext", SimpleNamespace(get_current=lambda: found.context))
    return found


def links(memory_gb: float = 2.0) -> list[Link]:
    def failing(shard: str) -> dict:
        return finished(shard) | ({"status": "failed", "error": "torn"} if shard == "s1" else {})

    return [Link("decode", lambda: failing, Needs(1, memory_gb=memory_gb)), Link("codes", lambda: finished, Needs(2, 0.5, memory_gb), 3)]


def test_each_shard_leaves_the_chain_once_with_what_became_of_it(data, ledger):
    events = []
    rows = list(run_chain(links(), ["s0", "s1", "s2"], Session(16, 1, 16, 0), on_event=events.append))
    assert rows == [{"shard": "s0", "decode": "finished", "codes": "finished"},
                    {"shard": "s1", "decode": "failed", "failed": "decode", "error": "torn", "fatal": False},
                    {"shard": "s2", "decode": "finished", "codes": "finished"}]
    assert [(e["event"], e["stage"], e["shard"]) for e in events if e["event"] == "begin"] == [
        ("begin", stage, shard) for stage, shard in (("decode", "s0"), ("decode", "s1"), ("decode", "s2"), ("codes", "s0"), ("codes", "s2"))]
    assert data.blocks == [3]


def test_shards_are_tried_as_often_as_asked(data, ledger):
    for _ in range(2):
        ledger.begin("decode", "s0", HERE)
    [row] = run_chain(links()[:1], ["s0"], Session(16, 1, 16, 0), attempts=2)
    assert row["error"] == "the worker died 2 times on this shard (out of memory?)"
    for _ in range(2):
        ledger.begin("decode", "s0", HERE)
    [row] = run_chain(links()[:1], ["s0"], Session(16, 1, 16, 0))
    assert row["decode"] == "finished"  # by default the third time
    for _ in range(3):
        ledger.begin("decode", "s0", HERE)
    [row] = run_chain(links()[:1], ["s0"], Session(16, 1, 16, 0))
    assert row["error"] == "the worker died 3 times on this shard (out of memory?)"


@pytest.mark.parametrize(("session", "cpus"), [(Session(16, 1, 16, 0), [1, 2]), (Session(4, 1, 2, 0), None)])
def test_each_stage_reserves_what_its_pool_says(data, session, cpus):
    list(run_chain(links(), ["s0"], session))
    pools = fit_pools(links(), session.cpus, session.gpus, session.node_cpus)
    for (name, options), pool, link in zip(data.made[0].asked, pools, links(), strict=True):
        compute = options.pop("compute")
        assert (compute.min_size, compute.max_size) == (1, pool.max_workers)
        assert name == link.name and options == {"num_cpus": pool.cpus, "num_gpus": link.needs.gpus, "memory": None}
    assert cpus is None or [p.cpus for p in pools] == cpus


@pytest.mark.parametrize(("memory_gb", "reserved"), [(10, 2.5 * 2**30), (9.99, None), (100, 2.5 * 2**30)])
def test_memory_is_reserved_only_where_there_is_plenty(data, memory_gb, reserved):
    list(run_chain(links(memory_gb=2.5), ["s0"], Session(16, 1, 16, memory_gb * 2**30)))
    assert [options["memory"] for _, options in data.made[0].asked] == [reserved] * 2


def test_ray_data_neither_orders_nor_draws_nor_reserves_object_memory(data):
    logging.getLogger("ray.data").setLevel(logging.INFO)
    data.context.enable_progress_bars = data.context.execution_options.preserve_order = data.context.op_resource_reservation_enabled = True
    list(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    context = data.context
    assert not (context.enable_progress_bars or context.execution_options.preserve_order or context.op_resource_reservation_enabled)
    assert logging.getLogger("ray.data").level == logging.ERROR


def test_a_cluster_that_fails_is_said_in_one_line_after_the_rows_that_came(data):
    data.fails, rows = ObjectLostError("a" * 56, None, ""), []
    with pytest.raises(OSError) as error:
        rows.extend(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    first = str(data.fails).splitlines()[0]
    assert str(error.value) == f"the Ray cluster failed ({first}); finished shards are kept, run again" and error.value.__suppress_context__


def test_a_defect_in_a_stage_keeps_its_traceback(data):
    data.fails = raised_in_task(KeyError("a defect"))
    with pytest.raises(KeyError) as error:
        list(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    assert error.value is data.fails


# One function.

@pytest.fixture
def asked(ledger, monkeypatch):
    """What Ray is asked for; what its tasks raise is raised as Ray does."""
    found = []

    def remote(**options):
        found.append(options)
        return Later

    def get(task, timeout=None):
        try:
            return task()
        except KeyError as error:
            raise raised_in_task(error) from None

    monkeypatch.setattr(sharded.ray, "remote", remote)
    monkeypatch.setattr(sharded.ray, "get", get)
    return found


def test_a_function_on_the_cluster_reports_and_returns(asked):
    def work(one, two, report):
        report({"step": 1, "loss": one})
        report({"step": 2, "loss": two})
        return one + two

    events = []
    assert run_one_reporting(work, events.append, 3, 4, cpus=2) == 7
    assert events == [{"step": 1, "loss": 3}, {"step": 2, "loss": 4}]
    assert run_one_reporting(lambda report: 1, events.append, cpus=0.5, gpus=1) == 1
    assert asked == [{"num_cpus": 2, "num_gpus": 0, "max_retries": 3}, {"num_cpus": 0.5, "num_gpus": 1, "max_retries": 3}]


def test_what_the_function_raises_is_raised_here_after_its_reports(asked):
    cause, events = KeyError("mine"), []

    def work(report):
        report({"step": 1})
        raise cause

    with pytest.raises(KeyError) as error:
        run_one_reporting(work, events.append, cpus=1)
    assert error.value is cause and error.value.__suppress_context__ and events == [{"step": 1}]


def test_a_dead_worker_is_not_the_functions_own_error(asked):
    def work(report):
        raise RayActorError

    with pytest.raises(RayActorError):
        run_one_reporting(work, print, cpus=1)


def test_reports_go_to_the_ledger(ledger):
    Reporter(Later(ledger))({"step": 1})
    assert ledger.drain() == [{"event": "end", "step": 1}]
