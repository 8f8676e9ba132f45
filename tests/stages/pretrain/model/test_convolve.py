"""Convolution by windows against torch's own in fp32: values, gradients, and groups of few channels in
bf16."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.pretrain.model.convolve import convolve, in_tiles
from stages.pretrain.model.encoder import ConvPositions


@settings(max_examples=40, deadline=None)
@given(
    taps=st.integers(1, 7),
    stride=st.integers(1, 5),
    extra=st.integers(0, 11),
    clips=st.integers(1, 3),
    groups=st.integers(1, 3),
)
def test_equals_the_library(taps, stride, extra, clips, groups):
    draw = torch.Generator().manual_seed(taps * 100 + stride * 10 + extra)
    x = torch.randn(groups, clips, taps + extra, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(groups, 3, taps, 2, generator=draw, dtype=torch.float64, requires_grad=True)
    ours = convolve(x, weight, stride)
    theirs = torch.stack(
        [
            F.conv1d(x[g].transpose(1, 2), weight[g].transpose(1, 2), stride=stride).transpose(1, 2)
            for g in range(groups)
        ]
    )
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn(ours.shape, generator=draw, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(theirs, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tile", [1, 4])
def test_tiles_give_the_same_frames(tile):
    x, weight = torch.randn(2, 1, 14, 3), torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(
        convolve(x, in_tiles(weight, tile), tile).view(2, 1, 12, 5), convolve(x, weight, 1)
    )


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("kernel", [128, 9])
def test_positions_of_narrow_groups(dtype, close, kernel):
    """Eight channels a group: in bf16 the CPU library's grouped convolution gave errors as large as its
    output here."""
    torch.manual_seed(0)
    net = ConvPositions(64, kernel, 8)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(2, 50, 64)
    weight = net.weight_v * net.weight_g / net.weight_v.norm(dim=(0, 1), keepdim=True)
    expected = F.gelu(
        F.conv1d(x_BTD.transpose(1, 2), weight, net.bias, padding=kernel // 2, groups=8)[..., :50]
    ).transpose(1, 2)
    found = net(x_BTD.to(dtype)).float()
    assert (found - expected).norm() < close * expected.norm()
