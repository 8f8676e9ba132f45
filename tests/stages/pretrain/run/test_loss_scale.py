"""The loss scale of fp16, step by step."""

import pytest

from stages.pretrain.run.loss_scale import GROW_AFTER, LARGEST, SMALLEST, START, LossScale


def grown(scale: LossScale, updates: int) -> LossScale:
    for _ in range(updates):
        scale.update(applied=True, bad_loss=False)
    return scale


def test_the_constants_are_those_of_torchs_scaler():
    assert (START, GROW_AFTER, LARGEST, SMALLEST) == (65_536.0, 2_000, 16_777_216.0, 1.0)
    assert LossScale(True) == LossScale(True, START, 0)


def test_each_overflow_halves_the_scale():
    scale, seen = LossScale(True, 8.0), []
    for _ in range(3):
        scale.update(applied=False, bad_loss=False)
        seen.append(scale.value)
    assert seen == [4.0, 2.0, 1.0]


def test_it_never_falls_below_the_smallest():
    scale = LossScale(True, SMALLEST)
    scale.update(applied=False, bad_loss=False)
    assert scale.value == SMALLEST


def test_it_doubles_after_a_long_time_without_overflow_and_the_count_begins_anew():
    scale = grown(LossScale(True, 4.0), GROW_AFTER - 1)
    assert (scale.value, scale.good) == (4.0, GROW_AFTER - 1)
    grown(scale, 1)
    assert (scale.value, scale.good) == (8.0, 0)
    grown(scale, GROW_AFTER - 1)
    assert scale.value == 8.0
    grown(scale, 1)
    assert scale.value == 16.0


def test_an_overflow_begins_the_count_anew():
    scale = grown(LossScale(True, 4.0), GROW_AFTER - 1)
    scale.update(applied=False, bad_loss=False)
    assert (scale.value, scale.good) == (2.0, 0)
    grown(scale, GROW_AFTER - 1)
    assert scale.value == 2.0


def test_it_never_grows_above_the_largest():
    scale = grown(LossScale(True, LARGEST), GROW_AFTER)
    assert (scale.value, scale.good) == (LARGEST, 0)
    assert grown(LossScale(True, LARGEST / 2), GROW_AFTER).value == LARGEST


@pytest.mark.parametrize("applied", [False, True])
def test_an_update_skipped_for_its_loss_says_nothing_about_the_scale(applied):
    scale = LossScale(True, 8.0, 5)
    scale.update(applied=applied, bad_loss=True)
    assert scale == LossScale(True, 8.0, 5)


@pytest.mark.parametrize("applied", [False, True])
def test_without_fp16_the_scale_is_one_and_stays_so(applied):
    scale = LossScale(False, 8.0)
    scale.update(applied=applied, bad_loss=False)
    assert (scale.value, scale.good) == (1.0, 0)
    scale.from_json({"value": 8.0, "good": 3})
    assert (scale.value, scale.good) == (1.0, 0), "a checkpoint of an fp16 run, gone on with in bf16"


def test_what_is_saved_restores_the_same_scale():
    scale = grown(LossScale(True, 32.0), 7)
    assert scale.to_json() == {"value": 32.0, "good": 7}
    again = LossScale(True)
    again.from_json(scale.to_json())
    assert again == scale
