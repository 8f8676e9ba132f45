import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sharded import Link, blocks, fit_pools
from stages.label.base import Needs

STAGES = [Link(n, None, Needs(c)) for n, c in (("decode", 1), ("codes", 1), ("cqt", 1), ("audit", 0.5))]


@given(st.integers(1, 500), st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=4))
def test_one_actor_of_each_and_one_more_task_always_fit(cpus, needs):
    links = [Link(f"s{i}", None, Needs(n)) for i, n in enumerate(needs)]
    pools = fit_pools(links, cpus, 0)
    reserved = sum(p.cpus * p.min_workers for p in pools)
    assert reserved <= cpus * 0.9 + 1e-9
    assert all(1 <= p.min_workers <= p.max_workers for p in pools)


@pytest.mark.parametrize(("cpus", "expected"), [(1, [1, 1, 1, 1]), (2, [1, 2, 1, 1]), (4, [1, 4, 1, 1])])
def test_on_small_machines_the_busiest_stage_gets_the_workers(cpus, expected):
    links = [Link(n, None, Needs(c), cpu_s=s) for n, c, s in (("decode", 1, 3), ("codes", 1, 45), ("cqt", 1, 2), ("audit", 0.5, 0.5))]
    assert [p.max_workers for p in fit_pools(links, cpus, 0)] == expected


@pytest.mark.parametrize(("shards", "expected"), [(0, 1), (1, 1), (2000, 2000), (5000, 2000), (10_000, 2000), (160_000, 32_000)])
def test_blocks_hold_one_shard_or_a_few(shards, expected):
    assert blocks(shards) == expected


def test_on_large_clusters_reservations_are_whole():
    assert [p.cpus for p in fit_pools(STAGES, 64, 0)] == [1, 1, 1, 0.5]


def test_a_missing_gpu_is_said_beforehand():
    with pytest.raises(ValueError, match="codes asks for 1 GPU, the cluster has 0"):
        fit_pools([Link("codes", None, Needs(1, gpus=1))], 8, 0)


def test_gpu_pools_do_not_outgrow_the_gpus():
    [pool] = fit_pools([Link("codes", None, Needs(1, gpus=0.5))], 64, 2)
    assert pool.max_workers == 4
