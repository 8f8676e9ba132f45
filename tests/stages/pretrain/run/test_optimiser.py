"""Which parameters share the rate; Adam's step, by hand; a step that is left out."""

from dataclasses import replace

import torch
from torch import nn

from stages.pretrain.run.optimiser import Adam
from stages.pretrain.run.settings import Optim

SMALL = Optim(updates=10, warmup_updates=4, lr=8.0)


def named() -> list[tuple[str, nn.Parameter]]:
    return [
        (name, nn.Parameter(torch.ones(2)))
        for name in ("encoder.weight", "cqt_head.weight", "cqt_head.bias", "xcqt_head.weight")
    ]


def test_the_cqt_head_has_its_share_of_the_rate():
    parameters = named()
    adam = Adam(parameters, replace(SMALL, cqt_head_lr_scale=0.25))
    adam.set_lr(4.0)
    assert [(len(group["params"]), group["lr"]) for group in adam.param_groups] == [(2, 4.0), (2, 1.0)]
    assert [id(p) for p in adam.param_groups[1]["params"]] == [id(parameters[1][1]), id(parameters[2][1])]


def test_with_one_rate_or_without_a_head_there_is_one_group():
    for parameters, optim in ((named(), SMALL), (named()[:1], replace(SMALL, cqt_head_lr_scale=0.25))):
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
