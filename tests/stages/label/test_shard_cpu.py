"""CPU seconds of a worker: its own, its ended children's, and those of the decoder that lives on."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from stages.label import shard
from stages.label.shard import ShardWorker
from stages.shards.storage import Storage
from tests.stages.label.made import SHARD, audio, codes_job


def test_user_and_system_time_of_all_are_added_up(monkeypatch):
    own, ended = (
        SimpleNamespace(ru_utime=1.0, ru_stime=20.0),
        SimpleNamespace(ru_utime=300.0, ru_stime=4000.0),
    )
    used = {shard.resource.RUSAGE_SELF: own, shard.resource.RUSAGE_CHILDREN: ended}
    living = SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=5e4, system=6e5))
    monkeypatch.setattr(shard.resource, "getrusage", used.__getitem__)
    monkeypatch.setattr(shard.psutil, "Process", lambda: SimpleNamespace(children=lambda: [living, living]))
    assert shard._cpu_s() == 4321.0 + 2 * 6.5e5


def test_times_are_differences(tmp_path, monkeypatch):
    audio(Storage(tmp_path))
    worker = ShardWorker(codes_job(tmp_path))
    now, used = iter(range(1000, 9000, 7)), iter(range(100, 9000, 3))
    monkeypatch.setattr(shard, "_cpu_s", lambda: next(used))
    monkeypatch.setattr(shard.time, "time", lambda: next(now))
    row = worker(SHARD)
    assert row["status"] == "finished" and row["started"] == 1000
    assert (row["wall_s"], row["busy_s"]) == (21, 9), "three looks later, at seven and three seconds a look"


@pytest.mark.parametrize("device, sets", [("cpu", 0), ("cuda:1", 1)])
def test_a_decoder_on_the_cpu_does_not_wait_for_torch(tmp_path, monkeypatch, device, sets):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    job = codes_job(tmp_path, device=device)
    stage = SimpleNamespace(name="decode", open=lambda *rest, **options: None)
    ShardWorker(dataclasses.replace(job, stage=stage))
    assert len(seen) == sets
