"""Bad updates: skipped and blamed, gone back from, or the end of the run; and fp16's overflows, which are
neither."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load

from stages.pretrain import loop
from stages.pretrain.data.state import State
from stages.pretrain.model.mert import Mert
from stages.pretrain.run.engine import Engine
from stages.pretrain.run.loss_scale import LossScale
from tests.stages.pretrain.runs import Quick

pytestmark = pytest.mark.usefixtures("one_thread")
NAN = math.nan
RESTORE = ("guard.then=restore", "checkpoints.every_updates=2", "checkpoints.keep=9")


def test_a_bad_update_is_skipped_and_its_samples_are_read_again_and_blamed(quick, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        Mert, "non_finite_keys", lambda own, batch: evaluated.append(own.training) or list(batch.keys)
    )
    quick.losses = {3: NAN}
    assert quick.train("optim.updates=4", "guard.in_a_row=2") == loop.DONE
    (skipped,) = quick.rows("skipped")
    keys = quick.keys([*quick.places(3)][2])
    assert (skipped["update"], skipped["loss"], skipped["keys"]) == (3, None, keys) and evaluated == [
        False,
        False,
    ]
    assert f"update 3 skipped (loss nan); samples that are not finite: {', '.join(keys)}" in quick.said
    seen = [(row["update"], row["skipped"], row["grad_norm"] is None) for row in quick.rows()]
    assert seen == [(1, 0, False), (2, 0, False), (3, 1, True), (4, 1, False)]
    assert quick.checkpoint(4)["steps"] == 3 and len(quick.checkpoint(4)["judge"]["history"]) == 3


def test_the_mean_loss_of_the_whole_batch_is_judged_once_before_the_weights_move(quick, monkeypatch):
    judged, before = [], []
    step, bad = Engine.step, loop.LossGuard.bad

    def weights() -> list[torch.Tensor]:
        return [p.detach().clone() for p in quick.training.model.parameters()]

    def judging(own, loss):
        judged.append(loss)
        before.append(weights())
        return bad(own, loss)

    def stepping(own, lr, skip):
        assert all(torch.equal(a, b) for a, b in zip(before[-1], weights(), strict=True))
        assert skip is False and all(p.grad is not None for p in own.model.parameters())
        return step(own, lr, skip)

    monkeypatch.setattr(loop.LossGuard, "bad", judging)
    monkeypatch.setattr(Engine, "step", stepping)
    quick.train("optim.updates=3")
    assert [row["loss"] for row in quick.rows()] == pytest.approx(judged, rel=1e-12) and len(judged) == 3
    assert all(not torch.equal(a, b) for a, b in zip(before[0], weights(), strict=True) if a.numel() > 1)


def test_a_jump_is_skipped_once_the_window_is_full_and_a_good_update_ends_the_stretch(quick):
    quick.losses = {1: 10.0, 2: 10.0, 3: 30.5, 4: 29.5, 5: 1000.0}
    assert quick.train("guard.window=2", "guard.spike=3", "guard.in_a_row=2") == loop.DONE
    assert [(row["update"], row["loss"]) for row in quick.rows("skipped")] == [(3, 30.5), (5, 1000.0)]
    assert quick.said.count("update 3 skipped (loss 30.5); samples that are not finite: none") == 1
    assert [row["skipped"] for row in quick.rows()] == [0, 0, 1, 1, 2, 2]


def test_bad_updates_in_a_row_end_the_run(quick):
    quick.losses = {3: NAN, 4: NAN}
    with pytest.raises(
        ValueError,
        match="^2 updates in a row had a loss that jumped or was not finite, up to update 4; there is "
        "no checkpoint "
        "to go back to, or guard.then is stop: lower optim.lr, and see .*/toy/metrics.jsonl$",
    ):
        quick.train("guard.in_a_row=2", "checkpoints.every_updates=2")
    assert quick.tried == 4 and [row["update"] for row in quick.rows()] == [1, 2, 3, 4]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(quick):
    quick.losses = {1: NAN}
    with pytest.raises(ValueError, match="up to update 1; there is no checkpoint to go back to"):
        quick.train("guard.in_a_row=1", "guard.then=restore")


def test_the_run_goes_back_to_the_last_checkpoint_and_past_the_data_since(quick):
    quick.losses = {5: NAN, 6: NAN}
    assert quick.train("optim.updates=7", "guard.in_a_row=2", *RESTORE) == loop.DONE
    places = [*quick.places(10)]
    assert [row["update"] for row in quick.rows()] == list(range(1, 8)) and quick.tried == 9
    (restored,) = quick.rows("restored")
    assert (restored["update"], restored["path"], restored["skipped"]) == (4, "u00000004", [[0, 64, 32]])
    assert "restored u00000004; went past the data up to sample 96 of epoch 0" in quick.said
    for call, place in zip(quick.calls, places[:9], strict=True):
        assert [key for batch in call["batches"] for key in batch.keys] == quick.keys(place), (
            "data go on, update by update"
        )
    optim = quick.training.config.optim
    assert [call["rate"] for call in quick.calls] == [optim.lr_at(u) for u in (0, 1, 2, 3, 4, 5, 4, 5, 6)]
    last = State.from_json(quick.checkpoint(7)["state"])
    assert (last.update, last.consumed, last.epoch, last.skipped) == (
        7,
        places[9].consumed,
        places[9].epoch,
        ((0, 64, 32),),
    )
    assert quick.checkpoint(7)["judge"]["skipped"] == 0 and quick.checkpoint(7)["steps"] == 7


def test_the_restored_judge_is_the_checkpoints_without_its_stretch(quick):
    """The checkpoint was written inside a stretch: gone back to, the stretch begins anew, the history does
    not."""
    quick.losses = {4: NAN, 5: NAN, 6: NAN}
    assert quick.train("guard.in_a_row=2", *RESTORE) == loop.DONE
    assert [row["path"] for row in quick.rows("restored")] == ["u00000004"] and quick.checkpoint(4)["judge"][
        "in_a_row"
    ] == 1
    assert quick.tried == 7, "6 is the first of a new stretch, then 6 is made"
    judge = quick.checkpoint(6)["judge"]
    assert (judge["in_a_row"], judge["skipped"], len(judge["history"])) == (0, 2, 4)


def test_the_weights_are_the_checkpoints_again(quick):
    """Bad twice at no rate to speak of, then as good: what was restored is what was saved."""
    quick.losses = {4: NAN}
    quick.train("optim.updates=3", "guard.in_a_row=1", *RESTORE)
    saved = quick.weights(2)
    quick.losses = {quick.tried + 2: NAN, quick.tried + 3: NAN}
    seen, restore = [], loop.Training._restore

    def restored(own, name):
        with torch.no_grad():
            for parameter in own.model.parameters():
                parameter.add_(1)
        saved = restore(own, name)
        seen.append({name: value.clone() for name, value in own.model.state_dict().items()})
        return saved

    quick.patch.setattr(loop.Training, "_restore", restored)
    quick.train("optim.updates=5", "resume.allow=[optim]", "guard.in_a_row=1", *RESTORE)
    assert len(seen) == 3
    for found, update in zip(seen, (3, 4, 4), strict=True):
        expected = load(quick.weights(update))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert saved != quick.weights(3)


def test_five_times_from_one_checkpoint_then_the_run_is_given_up(quick):
    assert loop.RESTORES == 5
    quick.losses = dict.fromkeys(range(3, 100), NAN)
    with pytest.raises(
        ValueError, match="^1 updates in a row .*, up to update 3; u00000002 was restored 5 times: lower"
    ):
        quick.train("guard.in_a_row=1", *RESTORE)
    assert quick.tried == 8 and len(quick.rows("restored")) == 5
    assert quick.training.restored == ["u00000002"] * 6


def test_five_times_from_each_of_two_checkpoints_is_no_end(quick):
    """Bad for five times, two good updates and a checkpoint, bad for five times again."""
    quick.losses = dict.fromkeys([*range(3, 8), *range(10, 15)], NAN)
    assert quick.train("guard.in_a_row=1", *RESTORE) == loop.DONE
    assert [row["path"] for row in quick.rows("restored")] == ["u00000002"] * 5 + ["u00000004"] * 5
    assert [row["update"] for row in quick.rows()] == [1, 2, 3, 4, 5, 6]


def test_going_past_the_end_of_an_epoch(quick):
    """An epoch has nine updates: the eighth and the ninth are bad, so the data go on in the next one."""
    quick.losses = {8: NAN, 9: NAN}
    assert (
        quick.train("optim.updates=10", "guard.in_a_row=2", *RESTORE, "checkpoints.every_updates=3")
        == loop.DONE
    )
    assert (
        quick.rows("restored")[0]["skipped"] == [[0, 96, 48]]
        and quick.rows("restored")[0]["path"] == "u00000006"
    )
    assert "restored u00000006; went past the data up to sample 0 of epoch 1" in quick.said
    assert [row["epoch"] for row in quick.rows()] == [0] * 6 + [1] * 4


def overflows(quick: Quick, tries: set[int]) -> None:
    """These updates find a gradient that is not finite, with a loss that is."""
    step = Engine.step

    def stepped(own, lr, skip):
        if quick.tried in tries:
            own.model.mask_vector.grad.fill_(math.inf)
        return step(own, lr, skip)

    quick.patch.setattr(Engine, "step", stepped)


@pytest.fixture
def scaled(monkeypatch):
    """fp32's arithmetic with fp16's loss scale, as it is on a GPU."""
    init = Engine.__init__

    def initialised(own, *arguments):
        init(own, *arguments)
        own.loss_scale = LossScale(True, 8.0)

    monkeypatch.setattr(Engine, "__init__", initialised)


def test_an_overflow_of_fp16_halves_the_scale_and_blames_nobody(quick, scaled):
    overflows(quick, {2, 3, 5})
    assert quick.train("guard.in_a_row=1") == loop.DONE
    assert quick.rows("skipped") == [] and not [line for line in quick.said if line.startswith("update ")]
    assert [(row["skipped"], row["scale"]) for row in quick.rows()] == [
        (0, 8),
        (1, 8),
        (2, 4),
        (2, 2),
        (3, 2),
        (3, 1),
    ]


def test_a_bad_loss_under_fp16_is_no_overflow(quick, scaled):
    quick.losses = {2: NAN}
    with pytest.raises(ValueError, match="1 updates in a row"):
        quick.train("guard.in_a_row=1")
    assert [row["update"] for row in quick.rows("skipped")] == [2] and [
        row["scale"] for row in quick.rows()
    ] == [8, 8]


def test_a_gradient_that_is_not_finite_at_scale_one_is_a_bad_update(quick):
    overflows(quick, {2, 4, 5})
    with pytest.raises(ValueError, match="2 updates in a row .*, up to update 5"):
        quick.train("guard.in_a_row=2")
    assert [row["update"] for row in quick.rows("skipped")] == [2, 4, 5]


def test_replaced_samples_are_named_counted_and_added_up(quick, monkeypatch):
    stream, number = loop.Loader.stream, itertools.count(1)

    def failing(own, state):
        for batch in stream(own, state):
            batch.replaced = {3: ["a: cut"], 4: ["b: gone", "c: cut"], 7: ["d: cut"]}.get(next(number), [])
            yield batch

    real = loop.Training.run
    monkeypatch.setattr(
        loop.Training, "run", lambda own: monkeypatch.setattr(loop.Loader, "stream", failing) or real(own)
    )
    quick.train("optim.updates=5")
    assert [row["replaced"] for row in quick.rows()] == [0, 3, 3, 4, 4]
    assert [(row["update"], row["samples"]) for row in quick.rows("replaced")] == [
        (2, ["a: cut", "b: gone", "c: cut"]),
        (4, ["d: cut"]),
    ]
    assert "update 2: replaced 3 that failed: a: cut; b: gone; c: cut" in quick.said
    assert quick.checkpoint(5)["replaced"] == 4
