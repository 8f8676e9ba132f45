"""What a run makes of its settings: seeds, the best, minutes, threads, heads; what is refused."""

import contextlib
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.evaluate.run import open_run
from stages.pretrain import loop
from tests.stages.pretrain.runs import ALONE

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_weights_and_the_generators_begin_by_the_seed_alone(quick, monkeypatch):
    """Whatever this process drew before."""
    begun, found = [], []
    report = loop.RunLog.start
    monkeypatch.setattr(
        loop.RunLog, "start", lambda own, *a: begun.append(torch.initial_seed()) or report(own, *a)
    )
    for noise, seed in ((1, 0), (2, 0), (1, 4)):
        torch.manual_seed(noise)
        monkeypatch.setattr(
            loop,
            "baselines_and_start",
            lambda model, *a: found.append(model.state_dict()) or _look(model, *a),
        )
        quick.train(
            f"run.seed={seed}",
            f"run.name=n{noise}{seed}",
            "optim.updates=1",
            "optim.warmup_updates=1",
            "optim.lr=1.0e-20",
        )
    assert begun == [int(np.random.SeedSequence([seed, 0, 0]).generate_state(1)[0]) for seed in (0, 0, 4)]
    same = [all(torch.equal(found[0][name], other[name]) for name in other) for other in found]
    assert same == [True, True, False]


_look = loop.baselines_and_start


def test_the_best_is_the_lowest_held_out_loss_wherever_it_lies(quick):
    """A rate that grows far beyond what trains well: the loss falls, then rises, so the best lies in the
    middle."""
    quick.train(
        "optim.updates=12",
        "optim.warmup_updates=12",
        "optim.lr=1.0",
        "watch.validate_every=1",
        "checkpoints.every_updates=1",
        "checkpoints.keep=1",
        "guard.spike=null",
    )
    valid = {row["update"]: row["loss"] for row in quick.rows("valid")}
    best = min(valid, key=valid.get)
    assert 1 < best < 12, "the run is one in which neither the first nor the last is best"
    assert (quick.run / "checkpoints" / "best").read_text() == f"u{best:08d}\n"
    assert sorted(p.name for p in (quick.run / "checkpoints").glob("u*")) == sorted(
        {f"u{best:08d}", "u00000012"}
    )
    last = quick.checkpoint(12)
    assert last["best_update"] == best == last["best"][1] and last["best"][0] == pytest.approx(
        valid[best], rel=1e-12
    )


def test_of_equal_losses_the_first_is_best(quick, monkeypatch):
    losses = iter([5.0, 2.0, 3.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(loop, "validate", lambda *a: {"loss": next(losses), "masked_frames": 1})
    quick.train("watch.validate_every=1", "checkpoints.every_updates=1", "checkpoints.keep=9")
    assert [quick.checkpoint(update)["best"] for update in range(1, 7)] == [
        [5.0, 1],
        [2.0, 2],
        [2.0, 2],
        [2.0, 2],
        [1.0, 5],
        [1.0, 5],
    ]


def test_without_held_out_recordings_there_is_no_best_and_no_row(quick, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *a: None)
    quick.train("optim.updates=2", "watch.validate_every=1")
    assert (
        quick.rows("valid") == []
        and quick.checkpoint(2)["best"] is quick.checkpoint(2)["best_update"] is None
    )


def test_a_checkpoint_is_due_by_minutes_counted_from_the_one_before(quick, monkeypatch):
    """30 s an update, one minute: due when more than 60 s have passed at the begin of an update."""
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    report = loop.RunLog.update
    monkeypatch.setattr(loop, "time", Clock)
    monkeypatch.setattr(
        loop.RunLog, "update", lambda *a: now.__setitem__(0, now[0] + 30) or report(*a[:4], 30.0, *a[5:])
    )
    quick.train("optim.updates=9", "checkpoints.every_minutes=1", "checkpoints.keep=9")
    assert [row["update"] for row in quick.rows("checkpoint")] == [4, 8, 9]
    assert [call["flags"] for call in quick.calls] == [(False, update in (4, 8)) for update in range(1, 10)]


@pytest.mark.parametrize(("threads", "local_size"), [("3", 1), ("null", 1), ("null", 1000)])
def test_threads_are_those_asked_for_or_this_ranks_share(quick, monkeypatch, threads, local_size):
    asked = []
    monkeypatch.setattr(loop.torch, "set_num_threads", asked.append)
    world = replace(ALONE, local_size=local_size)
    monkeypatch.setattr(
        loop, "joined", lambda timeout_s: asked.append(timeout_s) or contextlib.nullcontext(world)
    )
    monkeypatch.setattr(loop, "pin", lambda *a: (_ for _ in ()).throw(ValueError("far enough")))
    with pytest.raises(ValueError, match="far enough"):
        quick.train(f"run.threads={threads}", "run.stall_minutes=2")
    cores = len(os.sched_getaffinity(0))
    assert asked == [180, 3 if threads == "3" else max(1, cores // local_size)]


def test_too_large_a_global_batch_and_a_logarithm_of_logarithms_are_refused_before_the_model_is_built(
    quick, monkeypatch
):
    with pytest.raises(ValueError, match="global_batch is 500, an epoch has 156 samples .*left out"):
        quick.train("optim.global_batch=500")
    pin = loop.pin

    def logarithms(*arguments):
        pinned = pin(*arguments)
        return replace(pinned, facts=replace(pinned.facts, cqt=replace(pinned.cqt, magnitude="log")))

    monkeypatch.setattr(loop, "pin", logarithms)
    with pytest.raises(ValueError, match="objective.cqt_target is log, but .* holds logarithms already"):
        quick.train("objective.cqt_target=log")
    assert quick.training is None and not quick.calls


def test_without_a_cqt_head_nothing_of_it_is_written(quick):
    quick.train("optim.updates=2", "objective.cqt_weight=0", "watch.baseline_crops=1000")
    row = quick.rows()[0]
    assert not [name for name in row if name.startswith("cqt")] and math.isfinite(row["loss"])
    assert quick.training.target is None and quick.training.online is None


def test_the_cqt_can_be_computed_while_training(quick):
    quick.train("optim.updates=2", "data.cqt=online")
    row = quick.rows()[0]
    assert row["cqt_error"] > 0 and quick.training.online is not None


def test_musical_targets_are_learnt_and_measured_on_held_out_music(quick):
    quick.train("optim.updates=2", "objective.musical=[chroma,onsets]", "watch.validate_every=2")
    held_out = quick.rows("valid")
    assert held_out and all(len(row["musical_error"]) == 2 for row in (*quick.rows(), *held_out))
    net = open_run(quick.run).mert()
    assert net.musical_head.names == ("chroma", "onsets") and net.musical_head.sizes[0] == 12
