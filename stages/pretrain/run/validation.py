"""Held-out recordings: sums by recording, a bootstrap interval."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.pretrain.data.batch import Batch
from stages.pretrain.run.metrics import Baselines, aligned_codes, code_frequency_ce, cqt_errors
from stages.pretrain.run.world import World

RANK_BATCHES = 4  # micro-batches of whose hidden states the effective rank is measured


def validate(
    model: nn.Module,
    batches: Iterable[Batch],
    baselines: Baselines,
    world: World,
    resamplings: int,
    seed: int,
) -> dict | None:
    """None without held-out crops. `model`: of `Engine.evaluating`."""
    own = defaultdict(float)
    moments = []
    for i, batch in enumerate(batches):
        batch = batch.to(world.device)
        sums_BV = clip_sums(model, batch, baselines)
        for recording, sums in zip(batch.recordings, sums_BV.cpu().numpy(), strict=True):
            own[recording] += sums
        if i < RANK_BATCHES:
            moments = _add_moments(moments, model.hidden(batch.wave_BN))
    total = defaultdict(float)
    for part in world.gather(own):
        for recording, sums in part.items():
            total[recording] += sums
    if not total:
        return None
    sums_RV = np.stack([total[name] for name in sorted(total)])
    ranks = world.broadcast([effective_rank(layer) for layer in moments])
    found = figures(sums_RV, model, resamplings, seed)
    return found | {"recordings": len(total), "effective_rank": ranks}


def clip_sums(model: nn.Module, batch: Batch, baselines: Baselines) -> Tensor:
    """float64 (B, 1 + 3K + 3 + M), over each clip's masked frames: frames, ce_K, frequency_ce_K, correct_K,
    CQT errors of the model, the mean and the line, errors of M musical targets; what is not learnt is left
    out."""
    mask_BT = batch.mask_BT
    logits, cqt_BTF, musical_BTV = model.predict(batch.wave_BN, mask_BT)
    parts = [mask_BT.sum(1, keepdim=True).double()]
    if logits:
        pairs = list(zip(logits, aligned_codes(batch, model.codes), strict=True))
        ce = [F.cross_entropy(x.float().transpose(1, 2), codes_BT, reduction="none") for x, codes_BT in pairs]
        hit = [x.argmax(2) == codes_BT for x, codes_BT in pairs]
        frequency_ce = code_frequency_ce(batch, model.codes, baselines)
        for value_BTK in (torch.stack(ce, 2), frequency_ce, torch.stack(hit, 2)):
            parts.append((value_BTK.double() * mask_BT[..., None]).sum(1))
    if cqt_BTF is not None and batch.cqt_BLF is not None:
        target_BTF = model.cqt_head.target(batch.cqt_BLF[:, : mask_BT.shape[1]])
        own = (cqt_BTF.float() - target_BTF).square().mean(2)
        for error_BT in (own, *cqt_errors(target_BTF, mask_BT, baselines.cqt_mean_F)):
            parts.append((error_BT.double() * mask_BT).sum(1, keepdim=True))
    if musical_BTV is not None and batch.cqt_BLF is not None:
        target_BTV = model.musical_head.target(batch.cqt_BLF)[:, : mask_BT.shape[1]]
        error_BTM = model.musical_head.errors(musical_BTV, target_BTV)
        parts.append((error_BTM.double() * mask_BT[..., None]).sum(1))
    return torch.cat(parts, 1)


def figures(sums_RV: np.ndarray, model: nn.Module, resamplings: int, seed: int) -> dict:
    """`…_low`, `…_high`: 2.5 and 97.5 % over resampled recordings."""
    count = model.codebooks
    frames, rest = sums_RV[:, 0], sums_RV[:, 1:]
    mean = rest.sum(0) / frames.sum()
    ce, frequency, correct = (mean[i * count : (i + 1) * count] for i in range(3))
    objective = model.objective
    cqt, musical = np.split(mean[3 * count :], [len(mean) - 3 * count - len(objective.musical)])
    loss = objective.codes_weight * ce.sum() + (objective.cqt_weight * cqt[0] if len(cqt) else 0.0)
    loss += objective.musical_weight * musical.sum()
    found = {"loss": float(loss), "masked_frames": int(frames.sum())}
    if count:
        draws = np.random.default_rng(seed).integers(0, len(frames), (resamplings, len(frames)))
        gain_RK = rest[:, count : 2 * count] - rest[:, :count]
        resampled = gain_RK[draws].sum(1) / frames[draws].sum(1)[:, None]
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        found |= {"ce": ce.tolist(), "accuracy": correct.tolist()}
        for end, gain in (("", frequency - ce), ("_low", low), ("_high", high)):
            found[f"gain_over_unigram{end}"] = gain.tolist()
    for name, error in zip(("cqt_error", "cqt_mean_error", "cqt_line_error"), cqt, strict=False):
        found[name] = float(error)
    return found | ({"musical_error": musical.tolist()} if len(musical) else {})


def _add_moments(sums: list[Tensor], hidden: list[Tensor]) -> list[Tensor]:
    """(D + 1, D + 1) of each layer: second moments of its frames with a 1 appended."""
    frames = [F.pad(x_BTD.flatten(0, 1).float(), (0, 1), value=1.0).double() for x_BTD in hidden]
    found = [x_SD.T @ x_SD for x_SD in frames]
    return [a + b for a, b in zip(sums, found, strict=True)] if sums else found


def effective_rank(moments: Tensor) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli 2007); 1: collapsed."""
    mean = moments[:-1, -1] / moments[-1, -1]
    values = torch.linalg.eigvalsh(moments[:-1, :-1] / moments[-1, -1] - torch.outer(mean, mean)).clamp_min(0)
    share = values / values.sum().clamp_min(1e-30)
    return float(torch.exp(-(share * share.clamp_min(1e-30).log()).sum()))
