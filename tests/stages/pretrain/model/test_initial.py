"""Initial values by their moments, against those that fairseq gives (recipe, F)."""

from math import sqrt

import pytest
import torch

from stages.pretrain.data.batch import CodeColumn
from stages.pretrain.model.config import ConvFront
from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import mert, small

WIDTH = 128


@pytest.fixture(scope="module")
def net():
    model = small(width=WIDTH, ffn=256, conv=ConvFront(channels=(64,) * 7), position_kernel=32)
    return mert(model, Objective(head_width=16, learn_temperature=True), (CodeColumn("codes-a", 4, 256),), 96)


def uniform(x: torch.Tensor, low: float, high: float) -> None:
    assert low <= x.min() and x.max() <= high
    assert x.mean().item() == pytest.approx((low + high) / 2, abs=5 * (high - low) / sqrt(12 * x.numel()))
    assert x.std().item() == pytest.approx((high - low) / sqrt(12), rel=4 / sqrt(x.numel()))


def normal(x: torch.Tensor, deviation: float) -> None:
    assert x.mean().item() == pytest.approx(0, abs=5 * deviation / sqrt(x.numel()))
    assert x.std().item() == pytest.approx(deviation, rel=4 / sqrt(x.numel()))
    assert (x.abs() > 2.5 * deviation).any() or x.numel() < 1000  # it has a normal's tails


def test_moments(net):
    for layer in net.encoder.layers:
        for linear in (layer.attention.qkv, layer.attention.out, layer.wide, layer.narrow):
            normal(linear.weight, 0.02)
            assert not linear.bias.any()
    normal(net.front_end.first.weight, sqrt(2 / 10))
    for layer in net.front_end.rest:
        normal(layer.weight, sqrt(2 / (64 * layer.weight.shape[2])))
    normal(net.encoder.positions.weight_v, sqrt(4 / (32 * WIDTH)))
    torch.testing.assert_close(
        net.encoder.positions.weight_g, net.encoder.positions.weight_v.norm(dim=(0, 1), keepdim=True)
    )
    assert not net.encoder.positions.bias.any()
    uniform(net.mask_vector, 0, 1)
    uniform(net.code_heads[0].table_KCE, 0, 1)
    for linear, inputs in (
        (net.input_projection, 64),
        (net.code_heads[0].projection, WIDTH),
        (net.cqt_head, WIDTH),
    ):
        uniform(linear.weight, -1 / sqrt(inputs), 1 / sqrt(inputs))
        uniform(linear.bias, -1 / sqrt(inputs), 1 / sqrt(inputs))
    torch.testing.assert_close(net.code_heads[0].log_scale_K.exp(), torch.full((4,), 10.0))


def test_norms_begin_as_identity(net):
    for name, value in net.named_parameters():
        if "norm" in name:
            assert (value == (0 if name.endswith("bias") else 1)).all(), name


def test_the_seed_decides():
    first, again, other = (mert(seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["mask_vector"], other["mask_vector"])
