"""Baselines of the loss: predictors that read no audio, on the same masked frames (docs/training.md)."""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.model.masked import interpolated
from stages.pretrain.model.mert import MaskedFrames
from stages.signal.rates import HOP_SAMPLES


@dataclass
class Baselines:
    """log_probabilities: fp32 (codes,) of each codebook; cqt_mean_F: as the target is compared."""

    log_probabilities: list[Tensor]
    cqt_mean_F: Tensor | None

    def to(self, device: torch.device) -> "Baselines":
        mean = None if self.cqt_mean_F is None else self.cqt_mean_F.to(device)
        return Baselines([p.to(device) for p in self.log_probabilities], mean)


class Counter:
    """Frequencies are smoothed by the share of the uniform distribution with which one half of the recordings
    predicts the other best, as on unseen music."""

    def __init__(self, codes: tuple[CodeColumn, ...], target):
        self.codes, self.target = codes, target
        sizes = [column.size for column in codes for _ in range(column.codebooks)]
        self.counts = [torch.zeros(2, size, dtype=torch.float64) for size in sizes]
        self.cqt_sum = self.frames = 0
        self._half = {}  # of each recording, in turn 0 and 1

    def add(self, batch: Batch) -> None:
        halves = [self._half.setdefault(recording, len(self._half) % 2) for recording in batch.recordings]
        codes = (codes_BL for column in self.codes for codes_BL in batch.codes[column.name].unbind(2))
        for counts_2C, codes_BL in zip(self.counts, codes, strict=True):
            for half, codes_L in zip(halves, codes_BL, strict=True):
                counts_2C[half] += torch.bincount(codes_L.cpu().long(), minlength=counts_2C.shape[1])
        if batch.cqt_BLF is not None and self.target is not None:
            frames_SF = self.target(batch.cqt_BLF).flatten(0, 1).double().cpu()
            self.cqt_sum = frames_SF.sum(0) + self.cqt_sum
            self.frames += len(frames_SF)

    def baselines(self) -> Baselines:
        mean = (self.cqt_sum / self.frames).float() if self.frames else None
        return Baselines([smoothed(counts) for counts in self.counts], mean)


def smoothed(counts_2C: Tensor) -> Tensor:
    """fp32 log probabilities."""
    size = counts_2C.shape[1]
    share_U1 = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)[:, None]

    def mixed(counts_C: Tensor) -> Tensor:
        return (1 - share_U1) * counts_C / counts_C.sum().clamp_min(1) + share_U1 / size

    score_U = sum((counts_2C[1 - half] * mixed(counts_2C[half]).log()).sum(1) for half in (0, 1))
    probability_C = mixed(counts_2C.sum(0))[score_U.argmax()]
    return (probability_C / probability_C.sum()).log().float()


@torch.no_grad()
def code_frequency_ce(batch: Batch, codes: tuple[CodeColumn, ...], baselines: Baselines) -> Tensor:
    """fp32 (B, T, K): each frame's codes under the training frequencies, in nats."""
    pairs = zip(baselines.log_probabilities, aligned_codes(batch, codes), strict=True)
    return -torch.stack([p[codes_BT] for p, codes_BT in pairs], 2)


def aligned_codes(batch: Batch, codes: tuple[CodeColumn, ...]) -> list[Tensor]:
    """int64 (B, T) of each codebook, for each model frame (as in `Mert`)."""
    sample_T = torch.arange(batch.mask_BT.shape[1], device=batch.mask_BT.device) * HOP_SAMPLES
    found = [batch.codes[column.name][:, sample_T // column.hop_samples] for column in codes]
    return [codes_BT for codes_BTK in found for codes_BT in codes_BTK.long().unbind(2)]


@torch.no_grad()
def cqt_errors(target_BTF: Tensor, mask_BT: Tensor, mean_F: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (B, T) each: mean squared error over bins, of the bins' means and of the line."""
    mean = (target_BTF - mean_F).square().mean(2)
    line = (target_BTF - interpolated(target_BTF, mask_BT)).square().mean(2)
    return mean, line


@torch.no_grad()
def further_sums(
    batch: Batch, codes: tuple[CodeColumn, ...], baselines: Baselines, target
) -> dict[str, Tensor]:
    """Over a micro-batch's masked frames: `frequency_ce_K`, `cqt_mean`, `cqt_line`."""
    mask_BT, values = batch.mask_BT, {}
    if codes:
        values["frequency_ce_K"] = code_frequency_ce(batch, codes, baselines)
    if batch.cqt_BLF is not None and baselines.cqt_mean_F is not None:
        target_BTF = target(batch.cqt_BLF[:, : mask_BT.shape[1]])
        values["cqt_mean"], values["cqt_line"] = cqt_errors(target_BTF, mask_BT, baselines.cqt_mean_F)
    masked = MaskedFrames.of(mask_BT, batch.masked_BM)
    return {n: value[masked.clip_S, masked.frame_S].double().sum(0) for n, value in values.items()}


def sample_sum(batch: Batch) -> Tensor:
    """A checksum that identifies a global batch in any order; exact in float64 for two million samples."""
    samples = zip(batch.keys, batch.positions, strict=True)
    total = sum(zlib.crc32(f"{key}@{place}".encode()) for key, place in samples)
    return torch.tensor(float(total), dtype=torch.float64)


def row(sums: dict[str, Tensor], frames: int) -> dict[str, object]:
    """From the sums of one update over `frames` masked frames; None: codebook not drawn."""
    figures = {"loss": float(sums["loss"]) / frames, "masked_frames": frames}
    figures["samples"] = int(sums["samples"])
    trained = [bool(t) for t in (sums["trained_K"] > 0).tolist()]

    def mean(values: Tensor) -> list[float | None]:
        return [float(v) / frames if t else None for v, t in zip(values, trained, strict=True)]

    if trained:
        figures |= {"ce": mean(sums["ce_K"]), "accuracy": mean(sums["correct_K"])}
        figures["gain_over_unigram"] = mean(sums["frequency_ce_K"] - sums["ce_K"])
    if "musical" in sums:
        figures["musical_error"] = [float(error) / frames for error in sums["musical"]]
    if "cqt_mean" in sums:
        figures |= {f"{key}_error": float(sums[key]) / frames for key in ("cqt", "cqt_mean", "cqt_line")}
    return figures
