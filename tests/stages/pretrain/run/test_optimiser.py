"""The rate of every update, by hand; which parameters share it; a step that is left out; settings that are
refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.pretrain.run.optimiser import Adam, Optim

SMALL = Optim(updates=10, warmup_updates=4, rate=8.0)


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
    assert (found.updates, found.warmup_updates, found.schedule, found.rate, found.global_batch) == (
        400_000,
        32_000,
        "linear",
        5e-4,
        1080,
    )
    assert (found.betas, found.epsilon, found.weight_decay, found.clip_norm, found.cqt_head_rate) == (
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
        ("rate", (1e-30,), (0.0, -1.0)),
        ("cqt_head_rate", (0.0, 2.0), (-1e-9,)),
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
        with pytest.raises(ValueError, match=f"optim.{field} is"):
            replace(SMALL, **{field: value})


def test_a_run_has_at_least_one_update():
    assert Optim(updates=1, warmup_updates=0).updates == 1
    with pytest.raises(ValueError, match="optim.updates is 0"):
        Optim(updates=0, warmup_updates=0)


def named() -> list[tuple[str, nn.Parameter]]:
    return [
        (name, nn.Parameter(torch.ones(2)))
        for name in ("encoder.weight", "cqt_head.weight", "cqt_head.bias", "xcqt_head.weight")
    ]


def test_the_cqt_head_has_its_share_of_the_rate():
    parameters = named()
    adam = Adam(parameters, replace(SMALL, cqt_head_rate=0.25))
    adam.set_lr(4.0)
    assert [(len(group["params"]), group["lr"]) for group in adam.param_groups] == [(2, 4.0), (2, 1.0)]
    assert [id(p) for p in adam.param_groups[1]["params"]] == [id(parameters[1][1]), id(parameters[2][1])]


def test_with_one_rate_or_without_a_head_there_is_one_group():
    for parameters, optim in ((named(), SMALL), (named()[:1], replace(SMALL, cqt_head_rate=0.25))):
        adam = Adam(parameters, optim)
        adam.set_lr(4.0)
        assert [(len(group["params"]), group["lr"]) for group in adam.param_groups] == [
            (len(parameters), 4.0)
        ]


def test_its_step_is_adams_with_decoupled_decay():
    """fp64 by hand: m, v with bias correction, decay by rate times weight_decay."""
    optim = replace(SMALL, betas=(0.8, 0.9), epsilon=1e-3, weight_decay=0.1)
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    adam = Adam([("a", parameter)], optim)
    weight, m, v = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2), torch.zeros(2)
    for step, rate in enumerate((0.5, 0.25), 1):
        gradient = torch.tensor([0.3, -0.7], dtype=torch.float64) * step
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient.square()
        weight = weight * (1 - rate * 0.1) - rate * (m / (1 - 0.8**step)) / (
            (v / (1 - 0.9**step)).sqrt() + 1e-3
        )
        parameter.grad = gradient
        adam.set_lr(rate)
        adam.step()
    torch.testing.assert_close(parameter.detach(), weight)


def test_a_step_that_is_left_out_changes_nothing():
    parameter = nn.Parameter(torch.ones(2))
    adam = Adam([("a", parameter)], SMALL)
    parameter.grad = torch.ones(2)
    adam.skip = True
    adam.step()
    assert torch.equal(parameter.detach(), torch.ones(2)) and not adam.state
    adam.skip = False
    adam.step()
    assert not torch.equal(parameter.detach(), torch.ones(2)) and Adam.skip is False


def test_settings_are_not_changed_once_made():
    with pytest.raises(AttributeError):
        SMALL.rate = 1.0
