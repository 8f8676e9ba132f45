import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sharded import Link, fit_pools
from stages.label.base import Needs

STAGES = [Link(n, None, Needs(c)) for n, c in (("decode", 1), ("codes", 1), ("cqt", 1), ("audit", 0.5))]


@given(st.integers(1, 500), st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=4))
def test_one_actor_of_each_and_one_more_task_always_fit(cpus, needs):
    links = [Link(f"s{i}", None, Needs(n)) for i, n in enumerate(needs)]
    pools = fit_pools(links, cpus, 0)
    reserved = sum(p.cpus * p.min_workers for p in pools)
    assert reserved <= cpus * 0.9 + 1e-9
    assert all(1 <= p.min_workers <= p.max_workers for p in pools)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_on_small_machines_the_busiest_stage_can_have_a_worker_for_every_cpu(cpus):
    assert all(p.max_workers >= cpus for p in fit_pools(STAGES, cpus, 0))


def test_on_large_clusters_reservations_are_whole():
    assert [p.cpus for p in fit_pools(STAGES, 64, 0)] == [1, 1, 1, 0.5]


def test_a_missing_gpu_is_said_beforehand():
    with pytest.raises(ValueError, match="codes asks for 1 GPU, the cluster has 0"):
        fit_pools([Link("codes", None, Needs(1, gpus=1))], 8, 0)


def test_gpu_pools_do_not_outgrow_the_gpus():
    [pool] = fit_pools([Link("codes", None, Needs(1, gpus=0.5))], 64, 2)
    assert pool.max_workers == 4
