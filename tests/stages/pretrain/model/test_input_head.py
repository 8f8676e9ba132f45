"""The whitened input as a target: its statistics, and as part of the objective."""

import pytest
import torch

from stages.pretrain.model.config import MelFront
from stages.pretrain.model.input_head import RIDGE, InputHead, whitening
from stages.pretrain.model.objective import Objective
from stages.pretrain.run.cqt_start import baselines_and_start
from tests.stages.pretrain import toy
from tests.stages.pretrain.sizes import batch, mert, small

SPECTRUM = {"front_end": "mel", "mel": MelFront(mels=40, n_fft=512)}


def frames(clips: int = 4, length: int = 700, channels: int = 5) -> torch.Tensor:
    """Of unequal deviation, correlated, not of mean zero."""
    random = torch.Generator().manual_seed(3)
    mixing = torch.randn(channels, channels, generator=random) * torch.tensor([4.0, 2.0, 1.0, 1.0, 0.5])
    return torch.randn(clips, length, channels, generator=random) @ mixing.T + 3.0


def started(features_BtF: torch.Tensor, stack: int = 1) -> InputHead:
    head = InputHead(8, features_BtF.shape[2], stack)
    head.start(*whitening(sum(head.moments(part[None]) for part in features_BtF)))
    return head


def test_the_target_has_mean_zero_and_equal_deviation_in_every_direction():
    features_BtF = frames()
    target_SF = started(features_BtF).target(features_BtF).flatten(0, 1)
    covariance_FF = features_BtF.flatten(0, 1).T.cov(correction=0)
    torch.testing.assert_close(target_SF.mean(0), torch.zeros(5), rtol=0, atol=1e-4)
    values, directions = torch.linalg.eigh(covariance_FF)
    expected = directions @ torch.diag(values / (values + RIDGE * values.mean())) @ directions.T
    torch.testing.assert_close(target_SF.T.cov(correction=0), expected, rtol=1e-3, atol=1e-4)


def test_a_frame_of_several_is_their_mean_and_what_is_left_over_does_not_count():
    features_BtF = frames(length=11)
    head = started(features_BtF, 3)
    joined = features_BtF[:, :9].unflatten(1, (3, 3)).mean(2)
    torch.testing.assert_close(head.target(features_BtF), started(joined).target(joined))
    assert head.target(features_BtF).shape == (4, 3, 5)


def test_a_direction_that_never_varies_stays_finite():
    features_BtF = frames()
    features_BtF[..., 2] = -5.0
    target = started(features_BtF).target(features_BtF)
    assert target.isfinite().all() and target[..., 2].abs().max() < 1e-2


def with_input(weight: float = 2.0, **changes):
    return mert(small(**SPECTRUM), Objective(head_width=6, input_weight=weight, **changes), bins=24)


@pytest.mark.parametrize("visible", [0.0, 0.5])
def test_the_loss_gains_the_weighted_error_of_masked_and_of_visible_frames(visible):
    net, plain = with_input(visible_weight=visible), with_input(0.0, visible_weight=visible)
    inputs = batch(net)
    mask_BT = inputs["mask_BT"]
    features_BTF = net.front_end(inputs["wave_BN"], torch.float32)
    net.input_head.start(*whitening(net.input_head.moments(features_BTF)))
    found, without = net(**inputs), plain(**inputs)
    _, x_BTD = net.encode(inputs["wave_BN"], mask_BT)
    error_BT = net.input_head(x_BTD.flatten(0, 1)).view(features_BTF.shape) - net.input_head.target(
        features_BTF
    )
    error_BT = error_BT.square().mean(2)
    torch.testing.assert_close(found["input"], error_BT[mask_BT].sum(), rtol=1e-4, atol=0)
    expected = 2 * error_BT[mask_BT].sum() + 2 * visible * mask_BT.sum() * error_BT[~mask_BT].mean()
    torch.testing.assert_close(found["loss"] - without["loss"], expected, rtol=1e-3, atol=0)
    assert "input" not in without


def test_every_start_finds_the_same_whitening_from_the_same_crops():
    torch.manual_seed(0)
    net = with_input()
    crops = [toy.global_batch(0), toy.global_batch(1)]
    found = [baselines_and_start(net, crops, (), "default", torch.float32)[1]["input_head"] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    heard = torch.cat([net.front_end(crop.wave_BN, torch.float32).flatten(0, 1) for crop in crops])
    torch.testing.assert_close(found[0][0], heard.mean(0), rtol=1e-4, atol=1e-5)


def test_a_front_end_that_learns_has_no_fixed_input_to_predict():
    with pytest.raises(ValueError, match=r"objective.input_weight is 2\.0: it predicts a spectrum: set"):
        mert(objective=Objective(head_width=6, input_weight=2.0), bins=24)
