"""The rate of every update, by hand; limits of the settings of a run, each from both sides."""

import math
from dataclasses import replace

import pytest

from stages.pretrain.run.settings import CheckpointSettings, EngineSettings, Guard, Optim, Watch

SMALL = Optim(updates=10, warmup_updates=4, lr=8.0)


def test_the_linear_schedule_rises_in_equal_steps_and_falls_to_zero_after_the_last_update():
    expected = [2.0, 4.0, 6.0, 8.0, 8.0, 8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 / 6, 0.0]
    assert [SMALL.lr_at(update) for update in range(11)] == pytest.approx(expected, rel=1e-12)


def test_the_cosine_falls_from_the_peak_to_zero_by_half_a_wave():
    cosine = replace(SMALL, schedule="cosine")
    expected = [2.0, 4.0, 6.0, 8.0, *(4 * (1 + math.cos(math.pi * k / 6)) for k in range(7))]
    assert [cosine.lr_at(update) for update in range(11)] == pytest.approx(expected, abs=1e-12)
    assert cosine.lr_at(7) == pytest.approx(4.0) and cosine.lr_at(10) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_warm_up_it_begins_at_the_peak_and_with_nothing_else_it_only_rises(schedule):
    assert replace(SMALL, warmup_updates=0, schedule=schedule).lr_at(0) == 8.0
    only = replace(SMALL, warmup_updates=10, schedule=schedule)
    assert [only.lr_at(update) for update in (0, 9, 10)] == [0.8, 8.0, 8.0]
    assert replace(SMALL, warmup_updates=9, schedule=schedule).lr_at(10) == pytest.approx(0, abs=1e-12)


def test_the_defaults_are_the_recipes():
    found = Optim()
    assert (found.updates, found.warmup_updates, found.schedule, found.lr, found.global_batch) == (
        400_000,
        32_000,
        "linear",
        5e-4,
        1080,
    )
    assert (found.betas, found.epsilon, found.weight_decay, found.clip_norm, found.cqt_head_lr_scale) == (
        (0.9, 0.98),
        1e-6,
        0.01,
        10.0,
        1.0,
    )


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("updates", (4, 11), ()),
        ("warmup_updates", (0, 10), (-1, 11)),
        ("schedule", ("linear", "cosine"), ("step",)),
        ("lr", (1e-30,), (0.0, -1.0)),
        ("cqt_head_lr_scale", (0.0, 2.0), (-1e-9,)),
        ("global_batch", (1,), (0,)),
        (
            "betas",
            ((0.0, 0.0), (0.999, 0.999)),
            ((0.9,), (0.9, 0.9, 0.9), (1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1)),
        ),
        ("epsilon", (1e-30,), (0.0,)),
        ("weight_decay", (0.0,), (-1e-9,)),
        ("clip_norm", (1e-30,), (0.0,)),
    ],
)
def test_limits_of_every_setting(field, allowed, refused):
    for value in allowed:
        assert getattr(replace(SMALL, **{field: value}), field) == value
    for value in refused:
        with pytest.raises(ValueError, match=rf"Optim.{field}(\[[01]\])? is"):
            replace(SMALL, **{field: value})


def test_a_run_has_at_least_one_update():
    assert Optim(updates=1, warmup_updates=0).updates == 1
    with pytest.raises(ValueError, match="Optim.updates is 0"):
        Optim(updates=0, warmup_updates=0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"micro_batch": 0}, "EngineSettings.micro_batch is 0"),
        ({"precision": "fp8"}, "EngineSettings.precision is 'fp8': expected bf16, fp16 or fp32"),
        ({"zero_stage": 4}, "EngineSettings.zero_stage is 4"),
        ({"zero_stage": -1}, "EngineSettings.zero_stage is -1"),
        ({"compile": True, "zero_stage": 3}, "EngineSettings.compile is True: ZeRO 3"),
        (
            {"offload_optimizer": True, "zero_stage": 0},
            "EngineSettings.offload_optimizer is True: needs zero_stage 1, 2 or 3",
        ),
    ],
)
def test_impossible_engines_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        EngineSettings(**wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"micro_batch": 1},
        {"zero_stage": 0},
        {"zero_stage": 3},
        {"compile": True, "zero_stage": 2},
        {"offload_optimizer": True, "zero_stage": 1},
        {"precision": "fp32"},
    ],
)
def test_the_limits_themselves_are_allowed(right):
    assert all(getattr(EngineSettings(**right), name) == value for name, value in right.items())


def test_copies_of_the_weights_that_the_optimiser_adds():
    assert [EngineSettings(zero_stage=stage).copies(4) for stage in range(4)] == [2.0, 0.75, 0.75, 0.75]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: Guard(spike=1.0), r"Guard\.spike is 1\.0: expected a number, above 1, or null"),
        (lambda: Guard(window=0), r"Guard\.window is 0: expected a whole number, 1 or more"),
        (lambda: Guard(in_a_row=0), r"Guard\.in_a_row is 0"),
        (lambda: Guard(then="wait"), r"Guard\.then is 'wait': expected stop or restore"),
        (lambda: CheckpointSettings(every_updates=0), r"CheckpointSettings\.every_updates is 0"),
        (
            lambda: CheckpointSettings(every_minutes=0.0),
            r"CheckpointSettings\.every_minutes is 0\.0: .* above 0",
        ),
        (lambda: CheckpointSettings(keep=0), r"CheckpointSettings\.keep is 0"),
        (lambda: Watch(validate_every=0), r"Watch\.validate_every is 0"),
        (lambda: Watch(bootstrap=99), r"Watch\.bootstrap is 99: expected a whole number, 100 or more"),
        (lambda: Watch(baseline_crops=0), r"Watch\.baseline_crops is 0"),
    ],
)
def test_other_impossible_settings_are_refused(wrong, expected):
    with pytest.raises(ValueError, match=f"^{expected}"):
        wrong()


def test_their_limits_are_allowed():
    assert Guard(spike=1.001, window=1, in_a_row=1, then="restore") and Guard(spike=None).spike is None
    assert CheckpointSettings(every_updates=1, every_minutes=0.001, keep=1)
    assert Watch(validate_every=1, bootstrap=100, baseline_crops=1)


@pytest.mark.parametrize("made", [SMALL, EngineSettings(), Guard(), CheckpointSettings(), Watch()])
def test_settings_are_not_changed_once_made(made):
    for name in type(made).__dataclass_fields__:
        with pytest.raises(AttributeError):
            setattr(made, name, 1)
