"""What one undisturbed run does, update by update: data, rates, draws, validations, checkpoints, the best."""

import contextlib
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.pretrain import loop, metrics
from stages.pretrain.checkpoint import Checkpoints
from stages.pretrain.stopping import SIGNALS
from tests.stages.pretrain.runs import ALONE, STILL, Quick

pytestmark = pytest.mark.usefixtures("one_thread")
UPDATES, EPOCH = 12, 9  # an epoch has 156 samples: nine updates of 16


class Spies:
    """What the run asked of its parts."""

    def __init__(self, patch: pytest.MonkeyPatch, quick: Quick):
        self.saves, self.validations, self.largest, self.expected, self.looks, self.beats = [], [], [], [], [], 0
        save, validate, look, update, beat = Checkpoints.save, loop.validate, loop.first_look, loop.Engine.update, loop.Watchdog.beat

        def first_look(model, batches, codes, how, dtype):
            batches = list(batches)
            self.looks.append((how, [key for b in batches for key in b.keys], [len(b.keys) for b in batches]))
            return look(model, batches, codes, how, dtype)

        def expecting(engine, batches, frames, rate, drawn, *rest):
            batches = list(batches)
            draw = {"keep_layers": drawn[0], "codebooks": drawn[1]}
            with torch.no_grad():
                losses = [engine.model(b.wave_BN, b.mask_BT, b.codes, b.cqt_BLF, **draw)["loss"] for b, _ in batches]
            self.expected.append(float(sum(losses)) / sum(int(b.mask_BT.sum()) for b, _ in batches))
            return update(engine, batches, frames, rate, drawn, *rest)

        def beating(watchdog):
            self.beats += 1
            beat(watchdog)

        def saving(own, engine, state, wait):
            self.saves.append((state["update"], wait))
            return save(own, engine, state, wait)

        patch.setattr(Checkpoints, "save", saving)
        patch.setattr(loop, "validate", lambda *a: self.validations.append((quick.tried, a[0].training, a[4:])) or validate(*a))
        patch.setattr(loop, "try_largest", lambda *a: self.largest.append(a))
        patch.setattr(loop, "first_look", first_look)
        patch.setattr(loop.Engine, "update", expecting)
        patch.setattr(loop.Watchdog, "beat", beating)


@pytest.fixture(scope="module")
def whole(configuration, tmp_path_factory):
    """Twelve updates with warm-up, decay and a second epoch; validated at 5, 10, 12, saved at 4, 8, 12."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        quick = Quick(patch, configuration, tmp_path_factory.mktemp("whole"))
        spies = Spies(patch, quick)
        outcome = quick.train(f"optim.updates={UPDATES}", "optim.warmup_updates=4", "watch.validate_every=5", "checkpoints.every_updates=4",
                              "run.seed=3", "watch.baseline_crops=40", "watch.bootstrap=123", "checkpoints.keep=9", "objective.cqt_start=fit", *STILL)
        assert [signal.getsignal(number) for number in SIGNALS] == before
        yield quick, spies, outcome


def test_it_ends_with_its_last_update_and_says_so(whole):
    quick, _, outcome = whole
    assert outcome == loop.DONE == "done" and quick.said[-1] == f"finished: {UPDATES} updates, in {quick.run}"
    assert [row["update"] for row in quick.rows()] == list(range(1, UPDATES + 1)) and quick.tried == UPDATES
    assert [row["update"] for row in quick.rows("start")] == [0] and [row["update"] for row in quick.rows("end")] == [UPDATES]
    assert quick.said[0].startswith(f"data {quick.training.pinned.fingerprint[:12]}: ")


def test_every_rows_rate_is_the_one_the_update_was_made_with_and_the_schedules(whole):
    quick, optim = whole[0], whole[0].training.config.optim
    expected = [optim.rate_at(update) for update in range(UPDATES)]
    assert [call["rate"] for call in quick.calls] == expected
    assert [row["rate"] for row in quick.rows()] == pytest.approx(expected, rel=1e-12)
    assert expected[0] == optim.rate / 4 and expected[3] == optim.rate and expected[-1] == pytest.approx(optim.rate / 8)


def test_layers_and_codebooks_are_drawn_for_the_number_of_the_update(whole):
    quick = whole[0]
    assert [call["drawn"] for call in quick.calls] == [quick.training.model.draw(3, update) for update in range(UPDATES)]


def test_samples_and_epochs_are_those_of_the_order(whole):
    quick = whole[0]
    assert [row["epoch"] for row in quick.rows()] == [0] * EPOCH + [1] * (UPDATES - EPOCH)
    for call, row, place in zip(quick.calls, quick.rows(), quick.places(UPDATES), strict=True):
        assert [key for batch in call["batches"] for key in batch.keys] == quick.keys(place)
        assert row["samples"] == sum(int(metrics.sample_sum(batch)) for batch in call["batches"])
    assert quick.training.state == [*quick.places(UPDATES + 1)][-1]


def test_the_loss_of_a_row_is_the_mean_over_the_masked_frames_of_its_update(whole):
    quick, spies, _ = whole
    frames = [sum(int(batch.mask_BT.sum()) for batch in call["batches"]) for call in quick.calls]
    assert [call["frames"] for call in quick.calls] == frames == [row["masked_frames"] for row in quick.rows()]
    assert [row["loss"] for row in quick.rows()] == pytest.approx(spies.expected, rel=1e-5)


def test_a_row_counts_micro_batches_skipped_and_replaced(whole):
    quick = whole[0]
    assert quick.training.micro_batches == 2 == len(quick.calls[0]["batches"])
    assert all((row["skipped"], row["replaced"], row["scale"]) == (0, 0, 1.0) for row in quick.rows())
    assert all(0 <= row["data_wait"] < 1 and row["penalty"] > 0 and row["grad_norm"] > 0 for row in quick.rows())


def test_validation_and_checkpoints_come_at_their_updates_and_at_the_end(whole):
    quick, spies, _ = whole
    assert spies.validations == [(update, False, (123, 3)) for update in (5, 10, 12)], "update, training mode, resamplings and seed"
    assert [row["update"] for row in quick.rows("valid")] == [5, 10, 12]
    assert spies.saves == [(4, False), (8, False), (12, True)], "the last one is waited for"
    assert [(row["update"], row["path"]) for row in quick.rows("checkpoint")] == [(u, f"u{u:08d}") for u in (4, 8, 12)]
    assert quick.pictures == 6
    assert spies.beats == UPDATES + 3


def test_a_checkpoint_holds_the_place_and_the_judge(whole):
    quick = whole[0]
    for update in (4, 8, 12):
        saved = quick.checkpoint(update)
        assert loop.State.from_json(saved["state"]) == [*quick.places(update + 1)][-1] and saved["update"] == update
        assert saved["judge"]["history"] == pytest.approx([row["loss"] for row in quick.rows()[:update]])
        assert (saved["replaced"], saved["steps"], saved["world"]) == (0, update, 1)
        assert (saved["best"] is None) == (update == 4)


def test_the_first_look_takes_the_first_training_crops_of_another_order(whole):
    quick, spies, _ = whole
    training = quick.training
    ((how, keys, sizes),) = spies.looks
    place = loop.State(training.pinned.fingerprint, 0, 40)
    with contextlib.closing(training._loader(0, 1, 16)) as loader:
        stream = loader.stream(place)
        assert keys == [key for _ in range(3) for key in next(stream).keys]
    assert (how, sizes) == ("fit", [14, 13, 13])


def test_the_largest_micro_batch_is_tried_once(whole):
    quick, spies, _ = whole
    ((model, batch, dtype, world, copies),) = spies.largest
    assert model is quick.training.model and batch.wave_BN.shape == (8, 16_000) and (dtype, world, copies) == (torch.float32, ALONE, 2.0)


def test_afterwards_workers_watchdog_and_lock_are_gone(whole):
    training = whole[0].training
    assert training.watchdog._stopped.is_set() and not training.loader._streams and training.loader._reader is None


def test_the_weights_and_the_generators_begin_by_the_seed_alone(quick, monkeypatch):
    """Whatever this process drew before."""
    begun, found = [], []
    report = loop.Report.start
    monkeypatch.setattr(loop.Report, "start", lambda own, *a: begun.append(torch.initial_seed()) or report(own, *a))
    for noise, seed in ((1, 0), (2, 0), (1, 4)):
        torch.manual_seed(noise)
        monkeypatch.setattr(loop, "first_look", lambda model, *a: found.append(model.state_dict()) or _look(model, *a))
        quick.train(f"run.seed={seed}", f"run.name=n{noise}{seed}", "optim.updates=1", "optim.warmup_updates=1", "optim.rate=1.0e-20")
    assert begun == [int(np.random.SeedSequence([seed, 0, 0]).generate_state(1)[0]) for seed in (0, 0, 4)]
    same = [all(torch.equal(found[0][name], other[name]) for name in other) for other in found]
    assert same == [True, True, False]


_look = loop.first_look


def test_the_best_is_the_lowest_held_out_loss_wherever_it_lies(quick):
    """A rate that grows far beyond what trains well: the loss falls, then rises, so the best lies in the middle."""
    quick.train("optim.updates=12", "optim.warmup_updates=12", "optim.rate=1.0", "watch.validate_every=1", "checkpoints.every_updates=1",
                "checkpoints.keep=1", "guard.spike=null")
    valid = {row["update"]: row["loss"] for row in quick.rows("valid")}
    best = min(valid, key=valid.get)
    assert 1 < best < 12, "the run is one in which neither the first nor the last is best"
    assert (quick.run / "checkpoints" / "best").read_text() == f"u{best:08d}\n"
    assert sorted(p.name for p in (quick.run / "checkpoints").glob("u*")) == sorted({f"u{best:08d}", "u00000012"})
    last = quick.checkpoint(12)
    assert last["best_update"] == best == last["best"][1] and last["best"][0] == pytest.approx(valid[best], rel=1e-12)


def test_of_equal_losses_the_first_is_best(quick, monkeypatch):
    losses = iter([5.0, 2.0, 3.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(loop, "validate", lambda *a: {"loss": next(losses), "masked_frames": 1})
    quick.train("watch.validate_every=1", "checkpoints.every_updates=1", "checkpoints.keep=9")
    assert [quick.checkpoint(update)["best"] for update in range(1, 7)] == [[5.0, 1], [2.0, 2], [2.0, 2], [2.0, 2], [1.0, 5], [1.0, 5]]


def test_without_held_out_recordings_there_is_no_best_and_no_row(quick, monkeypatch):
    monkeypatch.setattr(loop, "validate", lambda *a: None)
    quick.train("optim.updates=2", "watch.validate_every=1")
    assert quick.rows("valid") == [] and quick.checkpoint(2)["best"] is quick.checkpoint(2)["best_update"] is None


def test_a_checkpoint_is_due_by_minutes_counted_from_the_one_before(quick, monkeypatch):
    """30 s an update, one minute: due when more than 60 s have passed at the begin of an update."""
    now = [1000.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

    report = loop.Report.update
    monkeypatch.setattr(loop, "time", Clock)
    monkeypatch.setattr(loop.Report, "update", lambda *a: now.__setitem__(0, now[0] + 30) or report(*a[:6], 30.0, *a[7:]))
    quick.train("optim.updates=9", "checkpoints.every_minutes=1", "checkpoints.keep=9")
    assert [row["update"] for row in quick.rows("checkpoint")] == [4, 8, 9]
    assert [call["flags"] for call in quick.calls] == [(False, update in (4, 8)) for update in range(1, 10)]


@pytest.mark.parametrize(("threads", "neighbours"), [("3", 1), ("null", 1), ("null", 1000)])
def test_threads_are_those_asked_for_or_this_ranks_share(quick, monkeypatch, threads, neighbours):
    asked = []
    monkeypatch.setattr(loop.torch, "set_num_threads", asked.append)
    world = replace(ALONE, neighbours=neighbours)
    monkeypatch.setattr(loop, "joined", lambda timeout_s: asked.append(timeout_s) or contextlib.nullcontext(world))
    monkeypatch.setattr(loop, "pin", lambda *a: (_ for _ in ()).throw(ValueError("far enough")))
    with pytest.raises(ValueError, match="far enough"):
        quick.train(f"run.threads={threads}", "run.stall_minutes=2")
    cores = len(os.sched_getaffinity(0))
    assert asked == [180, 3 if threads == "3" else max(1, cores // neighbours)]


def test_too_large_a_global_batch_and_a_logarithm_of_logarithms_are_refused_before_the_model_is_built(quick, monkeypatch):
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
