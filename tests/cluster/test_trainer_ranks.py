"""What each rank of a training run on Ray is told, and that none is left behind."""

import os
import sys
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError, RayError

from cluster import trainer
from cluster.trainer import Layout
from stages.pretrain.config import Config
from stages.pretrain.data.settings import Data
from tests.cluster.fakes import Local, plain

CONFIG = Config(data=Data())


class Ranks:
    """Actors that run nowhere: each has its host, and keeps what it is told."""

    def __init__(self, monkeypatch, plan: Layout, hosts: list[str]):
        self.plan, self.hosts = plan, hosts
        self.options: list[dict] = []
        self.told: list[dict] = []
        self.timeouts: list[float] = []
        self.killed: list[object] = []
        self.removed: list[str] = []
        self.patience: list[bool] = []
        self.lost: set[int] = set()
        monkeypatch.setattr(trainer, "_placed", self.placed)
        monkeypatch.setattr(trainer, "Rank", SimpleNamespace(options=self.optioned))
        monkeypatch.setattr(trainer, "remove_placement_group", self.removed.append)
        monkeypatch.setattr(trainer, "ray", SimpleNamespace(get=self.get, kill=self.kill))

    def placed(self, config, patient):
        assert config is CONFIG
        self.patience.append(patient)
        return "group", self.plan

    def optioned(self, **options):
        index = len(self.options)
        self.options.append(options)
        return Local(
            lambda: Local(
                SimpleNamespace(
                    index=index, where=lambda: (self.hosts[index], 7000 + index), train=self.train
                )
            )
        )

    def train(self, config, environment):
        assert config is CONFIG
        self.told.append(environment)
        return f"task of rank {environment['RANK']}"

    def get(self, places, timeout):
        self.timeouts.append(timeout)
        return places

    def kill(self, actor):
        index = actor.index._instance
        self.killed.append(index)
        if index in self.lost:
            raise RayError("gone already")


def test_each_rank_is_told_who_it_is_and_where_the_others_are(monkeypatch):
    ranks = Ranks(monkeypatch, Layout(5, 2, 0.0), ["a", "b", "a", "a", "b"])
    with trainer._ranks(CONFIG, True) as tasks:
        assert tasks == [f"task of rank {i}" for i in range(5)] and not ranks.killed and not ranks.removed
    common = {"MASTER_ADDR": "a", "MASTER_PORT": "7000", "WORLD_SIZE": "5"}
    assert ranks.told == [
        common | {"RANK": str(i), "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": size}
        for i, (local, size) in enumerate([("0", "3"), ("0", "2"), ("1", "3"), ("2", "3"), ("1", "2")])
    ]
    assert ranks.patience == [True] and ranks.timeouts == [trainer.PLACE_S]


def test_with_gpus_every_rank_sees_one_and_that_is_its_first(monkeypatch):
    ranks = Ranks(monkeypatch, Layout(3, 4, 1.0), ["a", "a", "b"])
    with trainer._ranks(CONFIG, False):
        pass
    assert [(t["RANK"], t["LOCAL_RANK"], t["LOCAL_WORLD_SIZE"]) for t in ranks.told] == [
        ("0", "0", "2"),
        ("1", "0", "2"),
        ("2", "0", "1"),
    ]
    assert ranks.patience == [False]


def test_each_rank_takes_its_own_part_of_the_room(monkeypatch):
    ranks = Ranks(monkeypatch, Layout(2, 4, 1.0), ["a", "a"])
    with trainer._ranks(CONFIG, False):
        pass
    for i, options in enumerate(ranks.options):
        strategy = options.pop("scheduling_strategy")
        assert (strategy.placement_group, strategy.placement_group_bundle_index) == ("group", i)
        assert options == {"num_cpus": 4, "num_gpus": 1.0}


def test_no_rank_is_left_whatever_happens(monkeypatch):
    ranks = Ranks(monkeypatch, Layout(3, 1, 0.0), ["a"] * 3)
    ranks.lost = {0, 1}
    with pytest.raises(RayActorError), trainer._ranks(CONFIG, False):
        raise RayActorError
    assert ranks.killed == [0, 1, 2] and ranks.removed == ["group"]


def test_no_rank_is_left_when_one_does_not_come_up(monkeypatch):
    ranks = Ranks(monkeypatch, Layout(2, 1, 0.0), ["a"] * 2)
    monkeypatch.setattr(ranks, "hosts", [])  # `where` fails
    with pytest.raises(IndexError), trainer._ranks(CONFIG, False):
        pass
    assert ranks.killed == [0, 1] and ranks.removed == ["group"]


def test_a_rank_trains_with_what_it_was_told(monkeypatch):
    calls = []

    def train(config, say):
        calls.append((config, os.environ["RANK"], os.environ["MASTER_ADDR"], say("a line")))
        return "done"

    monkeypatch.setenv("RANK", "before")
    monkeypatch.setenv("MASTER_ADDR", "before")
    monkeypatch.setitem(sys.modules, "stages.pretrain.loop", SimpleNamespace(train=train))
    assert plain(trainer.Rank)().train(CONFIG, {"RANK": "3", "MASTER_ADDR": "a"}) == "done"
    assert calls == [(CONFIG, "3", "a", None)]


def test_a_rank_says_where_others_reach_it(monkeypatch):
    monkeypatch.setattr(trainer.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setattr(trainer, "free_port", lambda: 4321)
    assert plain(trainer.Rank)().where() == ("10.0.0.7", 4321)


def test_ray_itself_never_restarts_a_rank_alone():
    assert trainer.Rank._default_options == {"max_restarts": 0}
