"""Musical targets: by hand on made spectra, and as part of the objective."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from stages.pretrain.config import Config, check_target
from stages.pretrain.data.index import CqtColumn
from stages.pretrain.data.settings import Data
from stages.pretrain.model.musical import SCALES, MusicalHead
from stages.pretrain.model.objective import Objective
from tests.stages.pretrain.sizes import batch, mert, small

BINS, OCTAVE = 48, 24
EVERY = ("chroma", "harmony", "onsets")


def head(*names: str, stack: int = 25, bins: int = BINS) -> MusicalHead:
    """At `stack` 25 a second is three frames."""
    return MusicalHead(8, names, bins, OCTAVE, stack)


def unscaled(name: str, cqt_BLF: torch.Tensor, **sizes) -> torch.Tensor:
    mean, deviation = SCALES[name]
    return head(name, **sizes).target(cqt_BLF) * deviation + mean


def silent(frames: int, bins: int = BINS) -> torch.Tensor:
    return torch.zeros(1, frames, bins)


def test_chroma_is_one_for_all_octaves_and_for_bins_beside_a_pitch():
    cqt_BLF = silent(3)
    cqt_BLF[0, 0, 2 * 7] = 4.0  # pitch class 7 of the lower octave
    cqt_BLF[0, 1, 24 + 2 * 7] = 4.0  # of the upper one
    cqt_BLF[0, 2, 2 * 7] = 4.0
    cqt_BLF[0, 2, 24 + 2 * 3] = 2.0
    found = unscaled("chroma", cqt_BLF)[0]
    torch.testing.assert_close(found[0], found[1])
    assert found[0].argmax() == 7 and found[0, 7] == pytest.approx(1) and found[0, 3] < 1e-4
    assert found[2, 3].item() == pytest.approx(0.25, rel=1e-3)  # power, of the loudest's


def test_every_bin_belongs_to_the_nearest_pitch_class():
    fine = MusicalHead(8, ("chroma",), 96, 48, 1)
    for place in range(96):
        cqt_BLF = silent(1, 96)
        cqt_BLF[0, 0, place] = 3.0
        assert fine.target(cqt_BLF)[0, 0].argmax() == round(place / 4) % 12 or place % 4 == 2


def test_silence_has_all_pitch_classes_alike():
    torch.testing.assert_close(unscaled("chroma", silent(2)), torch.ones(1, 2, 12))


def test_harmony_is_chroma_averaged_over_a_second_to_each_side():
    cqt_BLF = torch.rand(2, 11, BINS, generator=torch.Generator().manual_seed(1))
    chroma_BLC, found = unscaled("chroma", cqt_BLF), unscaled("harmony", cqt_BLF)
    for frame in range(11):
        near = chroma_BLC[:, max(0, frame - 3) : frame + 4].mean(1)
        torch.testing.assert_close(found[:, frame], near)


@pytest.mark.parametrize("stack, reach", [(1, 75), (3, 25), (75, 1), (200, 1)])
def test_a_second_in_frames(stack, reach):
    assert head("harmony", stack=stack).reach == reach


def test_onsets_are_rises_of_each_octave():
    cqt_BLF = silent(4) + 1.0
    cqt_BLF[0, 2, 24:36] = 1.0 * torch.e  # half of the upper octave rises, and falls again
    found = unscaled("onsets", cqt_BLF)[0]
    assert found.shape == (4, 2)
    torch.testing.assert_close(found[2], torch.tensor([0.0, 0.5]), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(found[[0, 1, 3]], torch.zeros(3, 2), rtol=0, atol=1e-5)


def test_an_octave_that_is_not_whole_is_the_mean_of_its_own_bins():
    cqt_BLF = silent(2, 30) + 1.0
    cqt_BLF[0, 1, 24:] = torch.e
    torch.testing.assert_close(
        unscaled("onsets", cqt_BLF, bins=30)[0, 1], torch.tensor([0.0, 1.0]), rtol=1e-2, atol=1e-4
    )


def test_the_error_is_a_mean_over_each_targets_own_values():
    made = head(*EVERY)
    a, b = torch.randn(2, 5, 26, generator=torch.Generator().manual_seed(2)).unbind()
    parts = (slice(0, 12), slice(12, 24), slice(24, 26))
    expected = torch.stack(
        [F.mse_loss(a[:, part], b[:, part], reduction="none").mean(1) for part in parts], 1
    )
    torch.testing.assert_close(made.errors(a, b), expected)


def with_targets(**changes):
    own = {"head_width": 6, "musical": EVERY, "musical_weight": 2.0} | changes
    return mert(objective=Objective(**own), bins=24)


def test_the_loss_gains_the_weighted_errors_of_masked_frames():
    net, plain = with_targets(), mert(objective=Objective(head_width=6), bins=24)
    inputs = batch(net)
    found, without = net(**inputs), plain(**inputs)
    assert found["musical"].shape == (3,) and "musical" not in without
    torch.testing.assert_close(found["loss"] - without["loss"], 2 * found["musical"].sum(), rtol=1e-3, atol=0)
    _, _, predicted = net.predict(inputs["wave_BN"], inputs["mask_BT"])
    target = net.musical_head.target(inputs["cqt_BLF"])[:, : predicted.shape[1]]
    error = net.musical_head.errors(predicted, target)[inputs["mask_BT"]].sum(0)
    torch.testing.assert_close(found["musical"], error.detach(), rtol=1e-4, atol=0)


def test_visible_frames_count_by_their_own_targets():
    own = {"codes_weight": 0, "cqt_weight": 0, "penalty_weight": 0}
    alone, net = with_targets(**own), with_targets(**own, visible_weight=0.5)
    inputs = batch(with_targets())
    masked, both = alone(**inputs), net(**inputs)
    mask_BT = inputs["mask_BT"]
    _, _, predicted = net.predict(inputs["wave_BN"], mask_BT)
    target = net.musical_head.target(inputs["cqt_BLF"])[:, : predicted.shape[1]]
    shown = net.musical_head.errors(predicted, target)[~mask_BT].mean(0).sum()
    expected = 0.5 * mask_BT.sum() * 2 * shown
    torch.testing.assert_close(both["loss"] - masked["loss"], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(both["musical"], masked["musical"])


def test_musical_targets_alone_are_enough_to_learn_from():
    net = with_targets(codes_weight=0, cqt_weight=0)
    assert net.cqt_head is None
    net(**batch(net) | {"cqt_BLF": torch.rand(2, 60, 24)})["loss"].backward()
    assert net.musical_head.projection.weight.grad.any()


def test_an_old_objective_draws_the_same_first_values():
    old, new = mert(bins=24), with_targets()
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name


@pytest.mark.parametrize("wrong", ["tempo", ("chroma", "keys")])
def test_unknown_targets_are_refused(wrong):
    with pytest.raises(ValueError, match="chroma, harmony or onsets"):
        Objective(musical=wrong)


def test_without_a_cqt_they_are_refused():
    with pytest.raises(ValueError, match="objective.musical"):
        mert(small(), Objective(head_width=6, musical=EVERY), bins=None)
    net = with_targets()
    with pytest.raises(ValueError, match="load its column"):
        net(**batch(net) | {"cqt_BLF": None})


def test_a_column_of_logarithms_is_refused():
    config = Config(data=Data(corpora=("unused",)))
    asked = dataclasses.replace(config, objective=Objective(musical=("chroma",)))
    logs = CqtColumn("cqt-a", 336, magnitude="log")
    check_target(config, logs)
    with pytest.raises(ValueError, match="objective.musical is computed from linear magnitudes"):
        check_target(asked, logs)
    check_target(asked, dataclasses.replace(logs, magnitude="linear"))
