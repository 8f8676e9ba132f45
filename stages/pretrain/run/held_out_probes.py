"""Two cheap probes of held-out music while a model trains: `watch.probe_every`. They need no further labels.

B clips, L layers (the input embedding first), D values, F bins of the CQT."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from stages.pretrain.data.batch import Batch
from stages.pretrain.run.world import World

PITCH_CLASSES, FOLDS = 12, 5
RIDGE = 0.1  # of the standardised features' variance, times the clips
LEAST = 20  # clips: fewer say nothing


@torch.no_grad()
def probe(model: nn.Module, batches: Iterable[Batch], world: World) -> dict | None:
    """Of the means over each clip's frames, by layer: `recording`, the share of clips whose nearest other one
    is of the same recording; `chroma`, the R² of a ridge regression of the twelve pitch classes' part in the
    CQT, recordings apart (left out without a CQT column). None with fewer than LEAST clips.

    `model`: of `Engine.evaluating`."""
    rows = []
    for batch in batches:
        batch = batch.to(world.device)
        shown_B = batch.mask_BT.any(1).tolist()  # a clip that fills up the last batch has an empty mask
        means_BLD = (
            torch.stack([x_BTD.float().mean(1) for x_BTD in model.hidden(batch.wave_BN)], 1).cpu().numpy()
        )
        chroma = [None] * len(shown_B) if batch.cqt_BLF is None else folded(batch.cqt_BLF).cpu().numpy()
        own = zip(batch.recordings, means_BLD, chroma, shown_B, strict=True)
        rows += [(name, x_LD, pitch) for name, x_LD, pitch, shown in own if shown]
    rows = [row for part in world.gather(rows) for row in part]
    return world.on_rank_0(judged, rows)


def folded(cqt_BLF: Tensor) -> Tensor:
    """(B, 12): the share of each pitch class in the mean magnitude, octaves folded, bins from C upwards."""
    magnitude_BLF = cqt_BLF.float()
    if (magnitude_BLF < 0).any():  # a column of logarithms
        magnitude_BLF = magnitude_BLF.exp()
    mean_BF = magnitude_BLF.mean(1)
    bins_per_class = max(1, mean_BF.shape[1] // (7 * PITCH_CLASSES))  # 336 bins: seven octaves (M)
    place_F = torch.arange(mean_BF.shape[1], device=mean_BF.device) // bins_per_class % PITCH_CLASSES
    found = mean_BF.new_zeros(len(mean_BF), PITCH_CLASSES).index_add_(1, place_F, mean_BF)
    return found / found.sum(1, keepdim=True).clamp_min(1e-9)


def judged(rows: list[tuple[str, np.ndarray, np.ndarray | None]]) -> dict | None:
    """From (recording, (L, D), chroma or None) of each clip; see `probe`."""
    if len(rows) < LEAST:
        return None
    rows = sorted(rows, key=lambda row: row[0])  # the same on any number of ranks, but for ties
    names = np.array([name for name, _, _ in rows])
    x_NLD = np.stack([x_LD for _, x_LD, _ in rows])
    x_NLD = (x_NLD - x_NLD.mean(0)) / np.maximum(x_NLD.std(0), 1e-6)
    layers = range(x_NLD.shape[1])
    found = {"clips": len(rows), "recording": [same_recording(x_NLD[:, i], names) for i in layers]}
    if rows[0][2] is not None:
        chroma = np.stack([pitch for _, _, pitch in rows])
        found["chroma"] = [ridge_r2(x_NLD[:, i], chroma, names) for i in layers]
    return found


def same_recording(x_ND: np.ndarray, names: np.ndarray) -> float:
    x_ND = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-9)
    near = x_ND @ x_ND.T
    np.fill_diagonal(near, -np.inf)
    return float((names[near.argmax(1)] == names).mean())


def ridge_r2(x_ND: np.ndarray, target_NC: np.ndarray, names: np.ndarray) -> float:
    """Mean over the numbers, each clip predicted from other recordings."""
    fold_N = np.unique(names, return_inverse=True)[1] % FOLDS
    predicted = np.zeros_like(target_NC)
    for fold in range(FOLDS):
        test, known = fold_N == fold, fold_N != fold
        if test.any() and known.any():
            x, mean = x_ND[known].astype(np.float64), target_NC[known].mean(0)
            ridge = RIDGE * len(x) * np.eye(x.shape[1])
            weights = np.linalg.solve(x.T @ x + ridge, x.T @ (target_NC[known] - mean))
            predicted[test] = x_ND[test] @ weights + mean
    left = ((target_NC - predicted) ** 2).sum(0)
    return float(np.mean(1 - left / np.maximum(((target_NC - target_NC.mean(0)) ** 2).sum(0), 1e-12)))
