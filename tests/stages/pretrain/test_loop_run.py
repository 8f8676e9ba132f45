"""What one undisturbed run does, update by update: data, rates, draws, validations, checkpoints, the best."""

import contextlib
import signal

import pytest
import torch

from stages.pretrain import loop
from stages.pretrain.run import metrics
from stages.pretrain.run.checkpoint import Checkpoints
from stages.pretrain.run.stopping import SIGNALS
from tests.stages.pretrain.runs import ALONE, STILL, Quick

pytestmark = pytest.mark.usefixtures("one_thread")
UPDATES, EPOCH = 12, 9  # an epoch has 156 samples: nine updates of 16


class Spies:
    """What the run asked of its parts."""

    def __init__(self, patch: pytest.MonkeyPatch, quick: Quick):
        self.saves, self.validations, self.largest, self.expected, self.looks, self.beats = (
            [],
            [],
            [],
            [],
            [],
            0,
        )
        save, validate, look = Checkpoints.save, loop.validate, loop.baselines_and_start
        forward, beat = loop.Engine.forward, loop.Watchdog.beat

        def baselines_and_start(model, batches, codes, how, dtype):
            batches = list(batches)
            self.looks.append((how, [key for b in batches for key in b.keys], [len(b.keys) for b in batches]))
            return look(model, batches, codes, how, dtype)

        def expecting(engine, b, keep_layers, codebooks):
            draw = {"keep_layers": keep_layers, "codebooks": codebooks}
            with torch.no_grad():
                loss = engine.model(b.wave_BN, b.mask_BT, b.codes, b.cqt_BLF, **draw)["loss"]
            self.expected.append((float(loss), int(b.mask_BT.sum())))
            return forward(engine, b, keep_layers, codebooks)

        def beating(watchdog):
            self.beats += 1
            beat(watchdog)

        def saving(own, engine, state, wait):
            self.saves.append((state["update"], wait))
            return save(own, engine, state, wait)

        patch.setattr(Checkpoints, "save", saving)
        patch.setattr(
            loop,
            "validate",
            lambda *a: self.validations.append((quick.tried, a[0].training, a[4:])) or validate(*a),
        )
        patch.setattr(loop, "check_memory", lambda *a: self.largest.append(a))
        patch.setattr(loop, "baselines_and_start", baselines_and_start)
        patch.setattr(loop.Engine, "forward", expecting)
        patch.setattr(loop.Watchdog, "beat", beating)


@pytest.fixture(scope="module")
def whole(configuration, tmp_path_factory):
    """Twelve updates with warm-up, decay and a second epoch; validated at 5, 10, 12, saved at 4, 8, 12."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        quick = Quick(patch, configuration, tmp_path_factory.mktemp("whole"))
        spies = Spies(patch, quick)
        outcome = quick.train(
            f"optim.updates={UPDATES}",
            "optim.warmup_updates=4",
            "watch.validate_every=5",
            "checkpoints.every_updates=4",
            "run.seed=3",
            "watch.baseline_crops=40",
            "watch.bootstrap=123",
            "checkpoints.keep=9",
            "objective.cqt_start=fit",
            *STILL,
        )
        assert [signal.getsignal(number) for number in SIGNALS] == before
        yield quick, spies, outcome


def test_it_ends_with_its_last_update_and_says_so(whole):
    quick, _, outcome = whole
    assert outcome == loop.DONE == "done" and quick.said[-1] == f"finished: {UPDATES} updates, in {quick.run}"
    assert [row["update"] for row in quick.rows()] == list(range(1, UPDATES + 1)) and quick.tried == UPDATES
    assert [row["update"] for row in quick.rows("start")] == [0] and [
        row["update"] for row in quick.rows("end")
    ] == [UPDATES]
    assert quick.said[0].startswith(f"data {quick.training.pinned.fingerprint[:12]}: ")


def test_every_rows_rate_is_the_one_the_update_was_made_with_and_the_schedules(whole):
    quick, optim = whole[0], whole[0].training.config.optim
    expected = [optim.lr_at(update) for update in range(UPDATES)]
    assert [call["rate"] for call in quick.calls] == expected
    assert [row["lr"] for row in quick.rows()] == pytest.approx(expected, rel=1e-12)
    assert (
        expected[0] == optim.lr / 4
        and expected[3] == optim.lr
        and expected[-1] == pytest.approx(optim.lr / 8)
    )


def test_layers_and_codebooks_are_drawn_for_the_number_of_the_update(whole):
    quick = whole[0]
    assert [call["drawn"] for call in quick.calls] == [
        quick.training.model.draw(3, update) for update in range(UPDATES)
    ]


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
    assert (
        [call["frames"] for call in quick.calls] == frames == [row["masked_frames"] for row in quick.rows()]
    )
    pairs = zip(spies.expected[::2], spies.expected[1::2], strict=True)  # two micro-batches an update
    expected = [(a + b) / (m + n) for (a, m), (b, n) in pairs]
    assert [row["loss"] for row in quick.rows()] == pytest.approx(expected, rel=1e-5)


def test_a_row_counts_micro_batches_skipped_and_replaced(whole):
    quick = whole[0]
    assert quick.training.micro_batches == 2 == len(quick.calls[0]["batches"])
    assert all((row["skipped"], row["replaced"], row["scale"]) == (0, 0, 1.0) for row in quick.rows())
    assert all(
        0 <= row["data_wait"] < 1 and row["penalty"] > 0 and row["grad_norm"] > 0 for row in quick.rows()
    )


def test_validation_and_checkpoints_come_at_their_updates_and_at_the_end(whole):
    quick, spies, _ = whole
    assert spies.validations == [(update, False, (123, 3)) for update in (5, 10, 12)], (
        "update, training mode, resamplings and seed"
    )
    assert [row["update"] for row in quick.rows("valid")] == [5, 10, 12]
    assert spies.saves == [(4, False), (8, False), (12, True)], "the last one is waited for"
    assert [(row["update"], row["path"]) for row in quick.rows("checkpoint")] == [
        (u, f"u{u:08d}") for u in (4, 8, 12)
    ]
    assert quick.pictures == 6
    assert spies.beats == UPDATES + 3


def test_a_checkpoint_holds_the_place_and_the_judge(whole):
    quick = whole[0]
    for update in (4, 8, 12):
        saved = quick.checkpoint(update)
        assert (
            loop.State.from_json(saved["state"]) == [*quick.places(update + 1)][-1]
            and saved["update"] == update
        )
        assert saved["judge"]["history"] == pytest.approx([row["loss"] for row in quick.rows()[:update]])
        assert (saved["replaced"], saved["steps"], saved["world"]) == (0, update, 1)
        assert (saved["best"] is None) == (update == 4)


def test_the_first_look_takes_the_first_training_crops_of_another_order(whole):
    quick, spies, _ = whole
    training = quick.training
    ((how, keys, sizes),) = spies.looks
    place, config = loop.State(training.pinned.fingerprint, 0, 40), training.config
    settings = (config.data, config.masking, config.mixture, training.frames)
    with contextlib.closing(loop.Loader(training.pinned, *settings, 16)) as loader:
        stream = loader.stream(place)
        assert keys == [key for _ in range(3) for key in next(stream).keys]
    assert (how, sizes) == ("fit", [14, 13, 13])


def test_the_largest_micro_batch_is_tried_once(whole):
    quick, spies, _ = whole
    ((model, batch, dtype, world, copies),) = spies.largest
    assert (
        model is quick.training.model
        and batch.wave_BN.shape == (8, 16_000)
        and (dtype, world, copies) == (torch.float32, ALONE, 2.0)
    )


def test_afterwards_workers_watchdog_and_lock_are_gone(whole):
    training = whole[0].training
    assert (
        training.watchdog._stopped.is_set()
        and not training.loader._streams
        and training.loader._reader is None
    )
