"""Where the CQT head starts: least squares, against numpy's, and what stays as it is."""

import numpy as np
import pytest
import torch

from stages.pretrain.run.cqt_start import RIDGE, CqtStart, baselines_and_start
from tests.stages.pretrain import toy

FLOAT = torch.float32


def heard(update: int):
    batch = toy.global_batch(update)
    batch.recordings = batch.keys
    return batch


def hidden_and_target(model, batch):
    """Hidden values and what is to be predicted, on the masked frames: numpy's own indexing."""
    model.eval()
    with torch.no_grad():
        _, hidden_BTD = model.encode(batch.wave_BN, batch.mask_BT)
        target_BTF = model.cqt_head.target(batch.cqt_BLF[:, : batch.mask_BT.shape[1]])
    mask = batch.mask_BT.numpy()
    return hidden_BTD.numpy()[mask].astype(np.float64), target_BTF.numpy()[mask].astype(np.float64)


def test_it_is_the_ridge_regression_of_numpy():
    """Least squares over the frames and √(S·ridge)·I below them is the ridge's solution."""
    model, batches = toy.model(), [heard(update) for update in range(3)]
    _, (weight, bias) = baselines_and_start(model, batches, toy.CODES, "fit", FLOAT)
    found = [hidden_and_target(model, batch) for batch in batches]
    x, y = np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
    centred, width = x - x.mean(0), x.shape[1]
    ridge = RIDGE * centred.var(0).mean()
    below = np.sqrt(len(x) * ridge) * np.eye(width)
    expected, *_ = np.linalg.lstsq(
        np.concatenate([centred, below]),
        np.concatenate([y - y.mean(0), np.zeros((width, y.shape[1]))]),
        rcond=None,
    )
    assert np.abs(weight.numpy().T - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (
        np.abs(bias.numpy() - (y.mean(0) - x.mean(0) @ expected)).max() <= 1e-4 * np.abs(bias.numpy()).max()
    )


def test_it_tells_more_than_the_mean_of_each_bin():
    model, batch = toy.model(), heard(0)
    baselines, (weight, bias) = baselines_and_start(model, [batch], toy.CODES, "fit", FLOAT)
    model.cqt_head.start(weight, bias)
    x, y = hidden_and_target(model, batch)
    with torch.no_grad():
        error = (model.cqt_head(torch.from_numpy(x).float()).numpy() - y) ** 2
    assert error.mean() < ((y - y.mean(0)) ** 2).mean() and baselines.cqt_mean_F is not None


@pytest.mark.parametrize("how", ["default", "mean"])
def test_what_is_not_asked_for_stays(how):
    model, batch = toy.model(), heard(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    baselines, head = baselines_and_start(model, [batch], toy.CODES, how, FLOAT)
    model.cqt_head.start(*head)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({"cqt_head.bias"} if how == "mean" else set())
    assert how == "default" or torch.equal(model.cqt_head.bias, baselines.cqt_mean_F)


def test_the_model_goes_on_in_the_mode_it_was_in():
    model, batch = toy.model().train(), heard(0)
    start = CqtStart(model, "fit", FLOAT)
    assert start.add(batch) is batch and model.training
