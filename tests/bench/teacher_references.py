"""What people run today in place of each teacher: one file at a time, straight from the definitions.

N samples at 24 kHz, T frames, F bands, K codebooks. Each function takes what our teacher was opened with
and returns a loop body, wave float32 (N,) → frames as a numpy array.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from stages.label.teachers import best_rq
from stages.label.teachers.best_rq import BestRq
from stages.label.teachers.kmeans import KMeans
from stages.label.teachers.mel_rvq import MelRvq
from stages.signal.mel import mel_filters

Body = Callable[[np.ndarray], np.ndarray]


def encodec(weights: Path, device: str) -> Body:
    """The `encodec` package as published: its own convolutions, weight norm left in."""
    from tests.encodec_weights import load_model

    model = load_model(weights).to(device).eval()

    def body(wave_N: np.ndarray) -> np.ndarray:
        ((codes_BKT, _),) = model.encode(torch.from_numpy(wave_N)[None, None].to(device))
        return codes_BKT[0].t().cpu().numpy()

    return body


def cqt(device: str) -> Body:
    """nnAudio's own layer with MERT's settings."""
    from nnAudio.features.cqt import CQT

    layer = CQT(
        sr=24_000,
        hop_length=320,
        fmin=32.7,
        n_bins=336,
        bins_per_octave=48,
        pad_mode="constant",
        verbose=False,
    ).to(device)

    def body(wave_N: np.ndarray) -> np.ndarray:
        frames_FT = layer(torch.from_numpy(wave_N)[None].to(device))[0]
        return frames_FT.t()[: len(wave_N) // 320].cpu().numpy()

    return body


def log_mel(wave_N: np.ndarray, filters_WF: torch.Tensor, n_fft: int) -> torch.Tensor:
    """float32 (T, F) in dB: torch.stft of the whole file, framed as our teachers frame it."""
    before = n_fft // 2 - 160
    padded_N = F.pad(torch.from_numpy(wave_N).to(filters_WF.device), (before, n_fft))
    window = torch.hann_window(n_fft, device=filters_WF.device)
    spectrum_WT = torch.stft(padded_N, n_fft, 320, window=window, center=False, return_complex=True)
    power_TF = spectrum_WT.abs().square().t()[: len(wave_N) // 320] @ filters_WF
    return 10 * power_TF.clamp_min(1e-10).log10()


def nearest(x_TD: torch.Tensor, codes_CD: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x_TD, codes_CD).argmin(1)


def mel_rvq(teacher: MelRvq, weights: dict[str, np.ndarray], device: str) -> Body:
    """Per level: project, normalise, all distances, subtract what the code decodes to."""
    w = {name: torch.from_numpy(array.copy()).to(device) for name, array in weights.items()}
    filters = torch.from_numpy(mel_filters(24_000, teacher.n_fft, teacher.mels)).to(device)

    def body(wave_N: np.ndarray) -> np.ndarray:
        rest_TD = (log_mel(wave_N, filters, teacher.n_fft) - w["mean_db"]) / w["std_db"]
        levels = []
        for k in range(teacher.codebooks):
            z_TE = F.normalize(F.linear(rest_TD, w["in_w"][k], w["in_b"][k]))
            levels.append(nearest(z_TE, F.normalize(w["codebook"][k])))
            rest_TD = rest_TD - F.linear(w["codebook"][k][levels[-1]], w["out_w"][k], w["out_b"][k])
        return torch.stack(levels, 1).cpu().numpy()

    return body


def random_projection(teacher: BestRq, device: str) -> Body:
    """BEST-RQ by its definition: stack, project, normalise, all distances."""
    (project_DE, codes_CE), *_ = ((torch.from_numpy(a).to(device) for a in pair) for pair in teacher.tables())
    filters = torch.from_numpy(mel_filters(24_000, 2048, teacher.mels)).to(device)
    u = np.linspace(0, 1, teacher.mels)
    mean_F, std_F = (
        torch.tensor(np.polyval(c, u), dtype=torch.float32, device=device)
        for c in (best_rq.MEAN_DB, best_rq.STD_DB)
    )

    def body(wave_N: np.ndarray) -> np.ndarray:
        # An even stack lies between label frames: the mel frames it holds begin half a hop earlier.
        early = np.concatenate([np.zeros(480, np.float32), wave_N, np.zeros(480, np.float32)])
        mel_TF = (log_mel(early, filters, 2048) - mean_F) / std_F
        stacked_TD = mel_TF.unfold(0, teacher.stack, 1).transpose(1, 2).flatten(1)[: len(wave_N) // 320]
        return nearest(F.normalize(stacked_TD @ project_DE), codes_CE)[:, None].cpu().numpy()

    return body


def kmeans(teacher: KMeans, weights: dict[str, np.ndarray], device: str) -> Body:
    """scikit-learn's `predict` on the same features; on the CPU, where it runs."""
    from sklearn.cluster import KMeans as Reference

    from stages.signal.chroma import chroma_filters

    model = Reference(len(weights["codes"]), n_init=1, max_iter=1, init=weights["codes"]).fit(
        weights["codes"]
    )
    both = np.concatenate(
        [mel_filters(24_000, teacher.n_fft, teacher.mels), chroma_filters(24_000, teacher.n_fft)], 1
    )
    filters = torch.from_numpy(both).to(device)

    def body(wave_N: np.ndarray) -> np.ndarray:
        bands_TF = log_mel(wave_N, filters, teacher.n_fft).cpu().numpy()
        bands_TF[:, teacher.mels :] -= bands_TF[:, teacher.mels :].mean(1, keepdims=True)
        return model.predict((bands_TF - weights["mean"]) / weights["scale"])[:, None]

    return body
