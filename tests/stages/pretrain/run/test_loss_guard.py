"""Which updates are skipped, and when skipped ones become trouble: the small state machine, step by step."""

import math
from pathlib import Path

import pytest
import torch

from stages.pretrain.run.loss_guard import LossGuard, given_up
from stages.pretrain.run.settings import Guard

NAN, INF = math.nan, math.inf


def judge(losses: tuple[float, ...] = (), **guard) -> LossGuard:
    """A judge that has seen these good updates."""
    found = LossGuard(Guard(**{"spike": 2.0, "window": 3, "in_a_row": 2} | guard))
    for loss in losses:
        assert found.note(loss, skipped=False, overflow=False) is False
    return found


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_is_bad_from_the_first_update_on(loss):
    assert judge().bad(loss) and judge((1.0, 1.0, 1.0)).bad(loss) and judge(spike=None).bad(loss)


def test_no_jump_is_judged_before_the_window_is_full():
    assert not judge().bad(1e9)
    assert not judge((1.0, 1.0)).bad(1e9)
    assert judge((1.0, 1.0, 1.0)).bad(1e9)


def test_a_jump_is_a_loss_above_spike_times_the_mean_of_the_window():
    full = judge((1.0, 2.0, 3.0))
    assert not full.bad(4.0), "exactly spike times the mean is allowed"
    assert full.bad(math.nextafter(4.0, 5.0))


def test_only_the_newest_losses_of_the_window_count():
    assert judge((1000.0, 1.0, 1.0, 1.0)).bad(2.5)


def test_without_a_spike_only_what_is_not_finite_is_bad():
    assert judge((1.0, 1.0, 1.0), spike=None).bad(1e9) is False


def test_skipped_losses_do_not_enter_the_mean():
    found = judge((1.0, 1.0, 1.0), in_a_row=10)
    for _ in range(5):
        found.note(100.0, skipped=True, overflow=False)
    assert found.bad(2.5)


def test_a_good_update_ends_a_bad_stretch():
    found = judge(in_a_row=2)
    assert [found.note(NAN, True, False), found.note(1.0, False, False), found.note(NAN, True, False)] == [
        False
    ] * 3
    assert found.note(NAN, True, False) is True, "the second of a new stretch"


@pytest.mark.parametrize("allowed", [1, 2, 4])
def test_trouble_begins_with_the_update_that_fills_the_row(allowed):
    found = judge(in_a_row=allowed)
    assert [found.note(NAN, True, False) for _ in range(allowed + 1)] == [False] * (allowed - 1) + [
        True,
        True,
    ]


def test_an_overflow_is_counted_as_skipped_but_neither_lengthens_nor_ends_a_bad_stretch():
    found = judge(in_a_row=2)
    assert [found.note(1.0, True, True) for _ in range(5)] == [False] * 5
    assert (found.skipped, found.in_a_row, list(found.history)) == (5, 0, [])
    assert found.note(NAN, True, False) is False
    assert found.note(1.0, True, True) is False
    assert found.note(NAN, True, False) is True and found.skipped == 8


def test_every_skipped_update_is_counted_once_and_good_ones_are_not():
    found = judge((1.0,))
    assert found.skipped == 0
    found.note(NAN, True, False)
    assert found.skipped == 1 and found.note(2.0, False, False) is False and found.skipped == 1


def test_what_is_saved_restores_the_same_judge():
    found = judge((1.0, 2.0, 3.0), in_a_row=3)
    found.note(NAN, True, False)
    found.note(NAN, True, False)
    assert found.to_json() == {"history": [1.0, 2.0, 3.0], "in_a_row": 2, "skipped": 2}
    again = LossGuard(found.guard, **found.to_json())
    assert again.to_json() == found.to_json() and again.bad(4.5) and not again.bad(4.0)
    assert again.note(NAN, True, False) is True, "the stretch goes on where it was saved"


def test_a_smaller_window_keeps_the_newest_of_the_saved_losses():
    again = LossGuard(Guard(spike=2.0, window=2), history=[100.0, 1.0, 1.0])
    assert list(again.history) == [1.0, 1.0] and again.bad(2.5)


def test_a_new_judge_has_seen_nothing():
    assert LossGuard(Guard()).to_json() == {"history": [], "in_a_row": 0, "skipped": 0}


def test_giving_up_says_what_was_seen_what_was_tried_and_what_to_do():
    said = str(given_up(Guard(in_a_row=7), 120, None, Path("runs/a/metrics.jsonl")))
    assert said == (
        "7 updates in a row had a loss that jumped or was not finite, up to update 120; there is no "
        "checkpoint to go back to, or guard.then is stop: lower optim.lr, and see runs/a/metrics.jsonl"
    )
    assert "; u1 was gone back to: lower" in str(given_up(Guard(), 1, "u1 was gone back to", Path("m")))


@pytest.mark.parametrize("mean", [1.0, 6.0, 6.1, INF, -INF, NAN])
def test_a_loss_is_judged_on_its_device_as_on_the_host(mean):
    own = judge((1.0, 3.0), spike=3.0, window=2)
    loss = torch.tensor(5.0, requires_grad=True)
    judged = own.judged(loss, torch.tensor(mean, dtype=torch.float64))
    judged.backward()
    if own.bad(mean):
        assert judged.isnan() and loss.grad.isnan()
    else:
        assert judged == 5.0 and loss.grad == 1.0
    assert own.bad(mean) == (mean not in (1.0, 6.0))
