import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.data import counter_rng
from stages.pretrain.data.state import State
from tests.stages.pretrain import plain_draws as plain

START = State("f" * 64, seed=3, global_batch=4)


def test_an_incomplete_last_batch_is_dropped_and_the_epoch_rolls_over():
    state, seen = START, []
    for _ in range(5):
        seen.append((state.epoch, state.consumed, state.update))
        state = state.advanced(11)
    assert seen == [(0, 0, 0), (0, 4, 1), (1, 0, 2), (1, 4, 3), (2, 0, 4)]


@given(steps=st.integers(0, 30), skips=st.integers(0, 10), samples=st.integers(4, 40))
@settings(max_examples=60, deadline=None)
def test_skipped_data_is_past_and_noted_once(steps, skips, samples):
    state = START
    for _ in range(steps):
        state = state.advanced(samples)
    past = state.skip(skips, samples)
    straight = state
    for _ in range(skips):
        straight = straight.advanced(samples)
    assert (past.epoch, past.consumed, past.update) == (straight.epoch, straight.consumed, state.update)
    assert sum(count for _, _, count in past.skipped) == 4 * skips
    assert all(
        a[0] != b[0] or a[1] + a[2] != b[1] for a, b in zip(past.skipped, past.skipped[1:], strict=False)
    ), "neighbours are one range"
    assert State.from_json(past.to_json()) == past


def test_other_data_seed_or_batch_is_refused_with_both_values():
    state = START.advanced(100).advanced(100)
    own = {"fingerprint": state.fingerprint, "seed": 3, "global_batch": 4}
    assert state.resumed(**own) == state
    for name, value, allow in (
        ("fingerprint", "e" * 64, "data"),
        ("seed", 5, "seed"),
        ("global_batch", 6, "global_batch"),
    ):
        with pytest.raises(ValueError) as refused:
            state.resumed(**own | {name: value})
        for said in (str(value), str(getattr(state, name)), f"resume.allow={allow}"):
            assert said in str(refused.value)
        with pytest.raises(ValueError):
            state.resumed(**own | {name: value}, allow={"other"})
        assert getattr(state.resumed(**own | {name: value}, allow={allow}), name) == value
    assert state.resumed(**own | {"seed": 5}, allow={"seed"}).epoch == 1, (
        "a place in the old order means nothing in the new one"
    )
    assert state.resumed(**own | {"global_batch": 6}, allow={"global_batch"}).consumed == 8


def test_a_larger_batch_than_is_left_begins_the_next_epoch():
    state = START.advanced(12).advanced(12).resumed("f" * 64, 3, 10, {"global_batch"})
    assert (state.consumed, state.settled(12).epoch, state.settled(12).consumed) == (8, 1, 0)
    assert state.advanced(12) == State("f" * 64, 3, 10, epoch=2, consumed=0, update=3)


def test_wrong_values():
    with pytest.raises(ValueError, match="global_batch is 4, an epoch has 3 samples"):
        START.advanced(3)
    with pytest.raises(ValueError, match="cannot be read"):
        State.from_json('{"seed": 1}')
    with pytest.raises(ValueError, match="global_batch is 0"):
        State("f", 0, 0)


@pytest.mark.parametrize(
    ("before", "place", "after"),
    [
        ((), {"consumed": 8}, ((0, 8, 4),)),
        (((0, 4, 4),), {"consumed": 8}, ((0, 4, 8),)),
        (((0, 0, 4),), {"consumed": 8}, ((0, 0, 4), (0, 8, 4))),  # not neighbours
        (((0, 0, 4),), {"epoch": 1, "consumed": 4}, ((0, 0, 4), (1, 4, 4))),  # of another epoch
        (((0, 0, 4), (0, 12, 4)), {"consumed": 16}, ((0, 0, 4), (0, 12, 8))),
        # the rest of an epoch, too small for a batch, is dropped and not skipped
        ((), {"consumed": 98}, ((1, 0, 4),)),
    ],
)
def test_skipped_ranges_that_touch_are_one_range(before, place, after):
    assert State("f", 3, 4, skipped=before, **place).skip(1, 100).skipped == after


def test_going_to_a_place_skips_all_updates_before_it():
    """Over the end of an epoch of 10 samples, too."""
    start = State("f", 3, 4, epoch=1, consumed=4, update=9)
    place = State("f", 3, 4, epoch=2, consumed=4, update=12)
    assert start.skip_to(place, 10) == State("f", 3, 4, 2, 4, 9, ((1, 4, 4), (2, 0, 4)))
    assert start.skip_to(start, 10) == start


def test_keys_are_those_of_purpose_seed_epoch_and_position():
    found = State("f", 3, 4, epoch=2, consumed=8).keys(counter_rng.MASK, np.array([0, 3]))
    key = plain.key(plain.MASKS, 3, 2)
    assert found.dtype == np.uint64 and found.tolist() == [plain.bits(key, position) for position in (8, 11)]


def test_what_is_saved_is_plain_and_sorted():
    state = State("f", 3, 1, epoch=1, consumed=2, update=4, skipped=((0, 0, 4),))
    assert state.to_json() == (
        '{"consumed": 2, "epoch": 1, "fingerprint": "f", "global_batch": 1, "seed": 3, "skipped": [[0, 0, '
        '4]], "update": 4}'
    )
    assert State.from_json(state.to_json()) == state


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"skipped": 1}', '{"skipped": [], "other": 1}'])
def test_what_is_no_saved_place_is_refused(text):
    with pytest.raises(
        ValueError, match="the saved place in the data cannot be read .*: restore another checkpoint"
    ):
        State.from_json(text)


@pytest.mark.parametrize("changed", [{"fingerprint": "g"}, {"seed": 4}])
def test_another_order_begins_at_the_begin_of_the_next_epoch(changed):
    now = {"fingerprint": "f", "seed": 3, "global_batch": 4} | changed
    state = State("f", 3, 4, epoch=2, consumed=8, update=9).resumed(**now, allow={"data", "seed"})
    assert state == State(**now, epoch=3, consumed=0, update=9)


@pytest.mark.parametrize("wrong", ["epoch", "consumed", "update"])
def test_nothing_counts_below_zero_and_nothing_is_changed_in_place(wrong):
    with pytest.raises(AssertionError):
        State("f", 0, 1, **{wrong: -1})
    with pytest.raises(AttributeError):
        setattr(State("f", 0, 1), wrong, 5)
