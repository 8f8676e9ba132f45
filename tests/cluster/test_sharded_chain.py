"""A chain in this process, with Ray Data's place taken by a loop: what its workers do, and what Ray is asked
for."""

import logging
import platform
from types import SimpleNamespace

import pytest
from ray.exceptions import ObjectLostError

from cluster import sharded
from cluster.pools import Session, StageSpec, size_pools
from cluster.sharded import run_chain
from stages.label.base import Needs
from tests.cluster.fakes import finished, raised_in_task

HERE = platform.node()


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
    """What `run_chain` asks of Ray Data: `made` datasets, with their blocks; the next one fails with
    `fails`."""
    found = SimpleNamespace(
        made=[], blocks=[], fails=None, context=SimpleNamespace(execution_options=SimpleNamespace())
    )

    def from_items(items, override_num_blocks):
        found.made.append(Rows(items, found.fails))
        found.blocks.append(override_num_blocks)
        return found.made[-1]

    monkeypatch.setattr(sharded.ray.data, "from_items", from_items)
    monkeypatch.setattr(sharded.ray.data, "DataContext", SimpleNamespace(get_current=lambda: found.context))
    return found


def links(memory_gb: float = 2.0) -> list[StageSpec]:
    def failing(shard: str) -> dict:
        return finished(shard) | ({"status": "failed", "error": "torn"} if shard == "s1" else {})

    return [
        StageSpec("decode", lambda: failing, Needs(1, memory_gb=memory_gb)),
        StageSpec("codes", lambda: finished, Needs(2, 0.5, memory_gb), 3),
    ]


def test_each_shard_leaves_the_chain_once_with_what_became_of_it(data, ledger):
    events = []
    rows = list(run_chain(links(), ["s0", "s1", "s2"], Session(16, 1, 16, 0), on_event=events.append))
    assert rows == [
        {"shard": "s0", "decode": "finished", "codes": "finished"},
        {"shard": "s1", "decode": "failed", "failed": "decode", "error": "torn", "fatal": False},
        {"shard": "s2", "decode": "finished", "codes": "finished"},
    ]
    assert [(e["event"], e["stage"], e["shard"]) for e in events if e["event"] == "begin"] == [
        ("begin", stage, shard)
        for stage, shard in (
            ("decode", "s0"),
            ("decode", "s1"),
            ("decode", "s2"),
            ("codes", "s0"),
            ("codes", "s2"),
        )
    ]
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
    pools = size_pools(links(), session.cpus, session.gpus, session.node_cpus)
    for (name, options), pool, link in zip(data.made[0].asked, pools, links(), strict=True):
        compute = options.pop("compute")
        assert (compute.min_size, compute.max_size) == (1, pool.max_workers)
        assert name == link.name and options == {
            "num_cpus": pool.cpus,
            "num_gpus": link.needs.gpus,
            "memory": None,
        }
    assert cpus is None or [p.cpus for p in pools] == cpus


@pytest.mark.parametrize(("memory_gb", "reserved"), [(10, 2.5 * 2**30), (9.99, None), (100, 2.5 * 2**30)])
def test_memory_is_reserved_only_where_there_is_plenty(data, memory_gb, reserved):
    list(run_chain(links(memory_gb=2.5), ["s0"], Session(16, 1, 16, memory_gb * 2**30)))
    assert [options["memory"] for _, options in data.made[0].asked] == [reserved] * 2


def test_ray_data_neither_orders_nor_draws_nor_reserves_object_memory(data):
    logging.getLogger("ray.data").setLevel(logging.INFO)
    data.context.enable_progress_bars = data.context.execution_options.preserve_order = (
        data.context.op_resource_reservation_enabled
    ) = True
    list(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    context = data.context
    assert not (
        context.enable_progress_bars
        or context.execution_options.preserve_order
        or context.op_resource_reservation_enabled
    )
    assert logging.getLogger("ray.data").level == logging.ERROR


def test_a_cluster_that_fails_is_said_in_one_line_after_the_rows_that_came(data):
    data.fails, rows = ObjectLostError("a" * 56, None, ""), []
    with pytest.raises(OSError) as error:
        rows.extend(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    first = str(data.fails).splitlines()[0]
    assert (
        str(error.value) == f"the Ray cluster failed ({first}); finished shards are kept, run again"
        and error.value.__suppress_context__
    )


def test_a_defect_in_a_stage_keeps_its_traceback(data):
    data.fails = raised_in_task(KeyError("a defect"))
    with pytest.raises(KeyError) as error:
        list(run_chain(links(), ["s0"], Session(16, 1, 16, 0)))
    assert error.value is data.fails
