"""How a cluster is shared out among the stages of a chain, for any cluster and any chain."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.pools import StageSpec, size_pools
from stages.label.base import Needs

STAGES = [StageSpec(n, None, Needs(c)) for n, c in (("decode", 1), ("codes", 1), ("cqt", 1), ("audit", 0.5))]
USABLE = 0.9  # of the CPUs; the rest is for the driver

links = st.lists(
    st.tuples(
        st.sampled_from([0.5, 1.0, 2.0, 4.0]),
        st.sampled_from([0, 0, 0.25, 1.0]),
        st.none() | st.integers(1, 6),
        st.sampled_from([0.5, 1.0, 45.0]),
    ),
    min_size=1,
    max_size=4,
).map(
    lambda rows: [
        StageSpec(f"s{i}", None, Needs(cpus, gpus), most, cpu_s)
        for i, (cpus, gpus, most, cpu_s) in enumerate(rows)
    ]
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(links, st.integers(1, 500), st.integers(4, 8), st.integers(1, 4))
def test_whatever_the_cluster_the_chain_can_run_and_nothing_is_reserved_twice(links, cpus, gpus, nodes):
    node_cpus = math.ceil(cpus / nodes)
    pools = size_pools(links, cpus, gpus, node_cpus)
    needs = [link.needs.cpus for link in links]
    whole, reserved, free_gpus = (
        sum(needs),
        sum(p.cpus for p in pools),
        gpus - sum(link.needs.gpus for link in links),
    )
    assert len(pools) == len(links) and all(p.min_workers == 1 <= p.max_workers for p in pools)
    assert reserved <= USABLE * cpus + 1e-9
    if USABLE * cpus >= whole + 1:
        assert [p.cpus for p in pools] == needs  # whole ones, and one more task
    else:
        assert all(0 < p.cpus <= need for p, need in zip(pools, needs, strict=True))
        assert reserved <= USABLE * node_cpus + 1e-9  # one actor of each fits on one node
    for link, pool in zip(links, pools, strict=True):
        # it alone grows into what is free
        assert (pool.max_workers - 1) * pool.cpus <= USABLE * cpus - reserved + 0.02
        assert (pool.max_workers - 1) * link.needs.gpus <= free_gpus + 1e-9
        assert link.max_workers is None or pool.max_workers <= link.max_workers


@pytest.mark.parametrize(
    ("cpus", "node_cpus", "expected"),
    [
        (1, None, [0.2, 0.2, 0.2, 0.1]),  # 0.9 over 3.5 + 1
        (2, None, [0.327, 0.327, 0.327, 0.163]),  # 1.8 over 3.5 + 2
        (3, 1, [0.257, 0.257, 0.257, 0.128]),  # 0.9 of one node over 3.5
        (3, 2, [0.415, 0.415, 0.415, 0.207]),  # 2.7 over 3.5 + 3
        (2.5, None, [0.346, 0.346, 0.346, 0.173]),  # 2.25 over 3.5 + 3
        (5, None, [1, 1, 1, 0.5]),  # 4.5 = 3.5 + 1: just enough
        (4.9, None, [0.518, 0.518, 0.518, 0.259]),
        (64, 1, [1, 1, 1, 0.5]),
    ],
)
def test_reservations(cpus, node_cpus, expected):
    assert [p.cpus for p in size_pools(STAGES, cpus, 0, node_cpus)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("cpus", "expected"), [(1, [1, 1, 1, 1]), (2, [1, 2, 1, 1]), (4, [1, 4, 1, 1])])
def test_on_small_machines_the_busiest_stage_gets_the_workers(cpus, expected):
    links = [
        StageSpec(n, None, Needs(c), cpu_s=s)
        for n, c, s in (("decode", 1, 3), ("codes", 1, 45), ("cqt", 1, 2), ("audit", 0.5, 0.5))
    ]
    assert [p.max_workers for p in size_pools(links, cpus, 0)] == expected


def test_on_a_small_machine_a_stage_of_several_cpus_needs_fewer_workers():
    # where nothing is said, a second costs one
    links = [StageSpec("codes", None, Needs(4), cpu_s=1), StageSpec("cqt", None, Needs(1))]
    assert [p.max_workers for p in size_pools(links, 5, 0)] == [1, 3]  # half of 5 CPUs: 2.5 / 4, 2.5 / 1


def test_a_pool_alone_grows_into_all_that_is_free():
    # 1 + (57.6 - 3.5) / 1, and / 0.5
    assert [p.max_workers for p in size_pools(STAGES, 64, 0)] == [55, 55, 55, 109]
    assert [p.max_workers for p in size_pools(STAGES, 10, 0)] == [6, 6, 6, 12]  # 1 + 5.5 / 1, and / 0.5
    [pool] = size_pools([StageSpec("one", None, Needs(1))], 10, 0)
    assert pool.max_workers == 9


def test_a_stage_without_any_cost_of_its_own_has_a_worker():
    links = [StageSpec("audit", None, Needs(1), cpu_s=0), StageSpec("cqt", None, Needs(1), cpu_s=1)]
    assert [p.max_workers for p in size_pools(links, 1, 0)] == [1, 1]


def test_a_pool_does_not_outgrow_what_its_stage_allows():
    links = [
        StageSpec("a", None, Needs(1), max_workers=3),
        StageSpec("b", None, Needs(1), max_workers=500),
        StageSpec("c", None, Needs(1)),
    ]
    assert [p.max_workers for p in size_pools(links, 20, 0)] == [3, 16, 16]


@pytest.mark.parametrize(
    ("gpus", "needs", "expected"),
    [
        (2, [0.5], [4]),
        (1, [1.0], [1]),
        (4, [1.0], [4]),
        (3, [0.5, 1.0], [4, 2]),
        (8, [0.3], [26]),
        (1, [0.1], [10]),
        (4, [1.0, 0], [4, 56]),
    ],
)
def test_gpu_pools_do_not_outgrow_the_gpus(gpus, needs, expected):
    pools = size_pools(
        [StageSpec(f"s{i}", None, Needs(1, gpus=need)) for i, need in enumerate(needs)], 64, gpus
    )
    assert [p.max_workers for p in pools] == expected


def test_a_missing_gpu_is_said_beforehand():
    with pytest.raises(ValueError) as error:
        size_pools([StageSpec("decode", None), StageSpec("codes", None, Needs(1, gpus=1))], 8, 0)
    assert (
        str(error.value)
        == "stage codes asks for 1 GPU, the cluster has 0: lower run.pools.codes.gpus or add a GPU node"
    )
    with pytest.raises(ValueError, match="stage a asks for 0.5 GPU, the cluster has 1:"):
        size_pools([StageSpec("a", None, Needs(1, gpus=0.5)), StageSpec("b", None, Needs(1, gpus=0.6))], 8, 1)
    size_pools([StageSpec("a", None, Needs(1, gpus=0.5)), StageSpec("b", None, Needs(1, gpus=0.5))], 8, 1)
