"""MERT: masked prediction of teachers' codes and of the constant-Q transform (arXiv 2306.00107)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stages.config import require
from stages.pretrain.data.batch import Batch, CodeColumn
from stages.pretrain.model.backbone import Backbone
from stages.pretrain.model.config import Model
from stages.pretrain.model.heads import CodeHead, CqtHead
from stages.pretrain.model.layers import working_dtype
from stages.pretrain.model.musical import MusicalHead
from stages.pretrain.model.objective import Objective
from stages.signal.rates import HOP_SAMPLES

# of frames, with probability 0.8 and spans of 5 (recipe D); only the heads' small part of `flops` hangs on it
MASKED_SHARE = 0.58


@dataclass(frozen=True)
class MaskedFrames:
    """Clip and frame of each masked frame, of `frames` a clip."""

    clip_S: Tensor
    frame_S: Tensor
    frames: int

    @classmethod
    def of(cls, mask_BT: Tensor, masked_BM: Tensor | None = None) -> "MaskedFrames":
        """Both ways the same, in the same order; that of `masked_BM` does not wait for the device."""
        if masked_BM is None:
            return cls(*mask_BT.nonzero(as_tuple=True), mask_BT.shape[1])
        clip_B1 = torch.arange(len(masked_BM), device=masked_BM.device)[:, None]
        return cls(clip_B1.expand_as(masked_BM).flatten(), masked_BM.flatten(), mask_BT.shape[1])

    def visible(self, mask_BT: Tensor) -> "MaskedFrames":
        """The other frames, where every clip has as many masked."""
        clips, frames = mask_BT.shape
        count = frames - len(self.clip_S) // clips
        return self.of(mask_BT, mask_BT.to(torch.uint8).argsort(dim=1, stable=True)[:, :count])

    def labels(self, name: str, labels_BL: Tensor, hop_samples: int) -> Tensor:
        """Model frame t has label frame floor(t · 320 / hop) (F hubert.py feat2tar)."""
        needed, found = (self.frames - 1) * HOP_SAMPLES // hop_samples + 1, labels_BL.shape[1]
        remedy = f"{self.frames} model frames need {needed}"
        require(found >= needed, name, f"{found} label frames", remedy)
        return labels_BL[self.clip_S, self.frame_S * HOP_SAMPLES // hop_samples]


class Mert(Backbone):
    def __init__(
        self,
        model: Model,
        objective: Objective,
        codes: tuple[CodeColumn, ...],
        cqt_bins: int | None,
        bins_per_octave: int = 48,
    ):
        """`cqt_bins`: None without a CQT. Initial values are drawn from torch's global generator. ValueError
        for an objective these labels cannot serve."""
        super().__init__(model)
        self.objective, self.codes = objective, tuple(codes)
        self.codebooks = sum(column.codebooks for column in codes)
        self.cqt_bins = cqt_bins if cqt_bins and objective.cqt_weight > 0 else None
        few, remedy = objective.codebooks_per_update or 0, f"there are {self.codebooks} codebooks"
        require(few <= self.codebooks, "objective.codebooks_per_update", few, remedy)
        labels, remedy = (
            self.codebooks > 0 or self.cqt_bins or objective.musical,
            "name a labelled column to learn from",
        )
        require(bool(labels), "objective", "no codes and no CQT", remedy)
        learnt = (objective.head_width, objective.temperature, objective.learn_temperature)
        self.code_heads = nn.ModuleList(CodeHead(model.width, c.codebooks, c.size, *learnt) for c in codes)
        self.cqt_head = CqtHead(model.width, self.cqt_bins, objective.cqt_target) if self.cqt_bins else None
        self.musical_head = None
        if objective.musical:
            require(bool(cqt_bins), "objective.musical", "no CQT", "it is computed from the CQT's column")
            sizes = (cqt_bins, bins_per_octave, model.stack)
            self.musical_head = MusicalHead(model.width, objective.musical, *sizes)

    def forward(
        self,
        wave_BN: Tensor,
        mask_BT: Tensor,
        codes: dict[str, Tensor],
        cqt_BLF: Tensor | None = None,
        keep_layers: tuple[bool, ...] | None = None,
        codebooks: tuple[int, ...] | None = None,
        masked_BM: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The objective on one micro-batch: wave float (B, N), mask bool (B, T), codes int64 (B, L, K) by
        column; masked int64 (B, M) as `Batch` has it.

        `loss` is the recipe's sum, fp32, to be divided by the masked frames of the global batch; `frames` is
        S, and like `trained_K` on the CPU. Detached, fp32: `ce_K` summed cross entropy and `correct_K` argmax
        hits (0 where `trained_K` is False), `cqt` and `musical` (one a target) the summed frame errors,
        `penalty`. `keep_layers` and `codebooks` are `draw`'s. ValueError for labels too short."""
        dtype = working_dtype(self.mask_vector)
        wanted = tuple(range(self.codebooks)) if codebooks is None else codebooks
        with torch.autocast(wave_BN.device.type, enabled=False):
            features_BTC, penalty = self._features(wave_BN, dtype)
            _, hidden_BTD = self._encode(features_BTC, mask_BT, keep_layers)
            masked, weights = MaskedFrames.of(mask_BT, masked_BM), self.objective
            musical_BLV = self._musical_target(cqt_BLF)
            told = (hidden_BTD, codes, cqt_BLF, musical_BLV, wanted)
            loss, sums = self._errors(masked, *told)
            frames = len(masked.clip_S)
            if weights.visible_weight:
                visible = MaskedFrames.of(~mask_BT) if masked_BM is None else masked.visible(mask_BT)
                shown, _ = self._errors(visible, *told)
                loss = loss + weights.visible_weight * frames / max(1, len(visible.clip_S)) * shown
        loss = loss + weights.penalty_weight * frames * penalty
        trained = [k in wanted for k in range(self.codebooks)]
        counts = {"frames": frames, "trained_K": trained}
        found = {name: value.detach() for name, value in (sums | {"penalty": penalty}).items()}
        found |= {name: torch.tensor(value) for name, value in counts.items()}  # known without the device
        return {"loss": loss, **found}

    def predict(self, wave_BN: Tensor, mask_BT: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """fp32 logits (B, T, C) of each codebook, and the CQT (B, T, F) and the musical targets (B, T, V) as
        their targets are, or None."""
        _, x_BTD = self.encode(wave_BN, mask_BT)
        clips, x_SD = x_BTD.shape[:2], x_BTD.flatten(0, 1)
        with torch.autocast(wave_BN.device.type, enabled=False):
            logits = [
                logits_SC.unflatten(0, clips)
                for column, head in zip(self.codes, self.code_heads, strict=True)
                for logits_SC in head(x_SD, None, tuple(range(column.codebooks)))
            ]
            heads = (self.cqt_head, self.musical_head)
            return logits, *(head(x_SD).unflatten(0, clips) if head else None for head in heads)

    def _errors(
        self,
        frames: MaskedFrames,
        hidden_BTD: Tensor,
        codes: dict[str, Tensor],
        cqt_BLF: Tensor | None,
        musical_BLV: Tensor | None,
        wanted: tuple[int, ...],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum over these frames, and its parts: see `forward`."""
        x_SD, weights = hidden_BTD[frames.clip_S, frames.frame_S], self.objective
        ce_K, correct_K = self._code_errors(x_SD, codes, frames, wanted)
        cqt = self._cqt_error(x_SD, cqt_BLF, frames)
        loss = weights.codes_weight * ce_K.sum() + weights.cqt_weight * cqt
        sums = {"ce_K": ce_K, "correct_K": correct_K, "cqt": cqt}
        if self.musical_head:
            target_SV = frames.labels("cqt_BLF", musical_BLV, HOP_SAMPLES)
            sums["musical"] = self.musical_head.errors(self.musical_head(x_SD), target_SV).sum(0)
            loss = loss + weights.musical_weight * sums["musical"].sum()
        return loss, sums

    def _code_errors(
        self, x_SD: Tensor, codes: dict[str, Tensor], masked: MaskedFrames, wanted: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """fp32 (K,) of all columns: summed cross entropy, argmax hits."""
        none = x_SD.new_zeros(0, dtype=torch.float32)
        losses, hits, first = [none], [none], 0
        for column, head in zip(self.codes, self.code_heads, strict=True):
            remedy = f"this model learns from {column.name}: load that column"
            require(column.name in codes, "codes", sorted(codes), remedy)
            codes_SK = masked.labels(column.name, codes[column.name], column.hop_samples)
            own = tuple(k - first for k in wanted if first <= k < first + column.codebooks)
            loss_K, correct_K = head(x_SD, codes_SK, own)
            losses.append(loss_K)
            hits.append(correct_K)
            first += column.codebooks
        return torch.cat(losses), torch.cat(hits)

    def _cqt_error(self, x_SD: Tensor, cqt_BLF: Tensor | None, masked: MaskedFrames) -> Tensor:
        """Sum over masked frames of the mean square over bins; fp32."""
        if self.cqt_head is None:
            return x_SD.new_zeros((), dtype=torch.float32)
        remedy = "this model predicts the CQT: load its column, or set objective.cqt_weight to 0"
        require(cqt_BLF is not None, "cqt_BLF", None, remedy)
        target_SF = self.cqt_head.target(masked.labels("cqt_BLF", cqt_BLF, HOP_SAMPLES))
        return (self.cqt_head(x_SD) - target_SF).square().mean(1).sum()

    def _musical_target(self, cqt_BLF: Tensor | None) -> Tensor | None:
        if self.musical_head is None:
            return None
        remedy = "objective.musical is computed from the CQT: load its column, or leave it empty"
        require(cqt_BLF is not None, "cqt_BLF", None, remedy)
        return self.musical_head.target(cqt_BLF)

    def draw(self, seed: int, update: int) -> tuple[tuple[bool, ...], tuple[int, ...]]:
        """Layers to keep and codebooks to train: the same on every rank."""
        random = np.random.default_rng([seed, update, 0x6D657274])
        keep_layers = tuple(bool(kept) for kept in random.random(self.model.layers) >= self.model.layer_drop)
        n = self.objective.codebooks_per_update or self.codebooks
        return keep_layers, tuple(sorted(int(k) for k in random.permutation(self.codebooks)[:n]))

    @torch.no_grad()
    def non_finite_keys(self, batch: Batch) -> list[str]:
        """Of samples with NaN or infinity in input, labels or predictions, without dropout."""
        training = self.training
        self.eval()
        logits, *spectra = self.predict(batch.wave_BN, batch.mask_BT)
        self.train(training)
        watched = [x for x in (batch.wave_BN, *logits, *spectra, batch.cqt_BLF) if x is not None]
        sound_B = torch.stack([x.flatten(1).isfinite().all(1) for x in watched]).all(0)
        for column in self.codes:
            codes_BLK = batch.codes[column.name]
            sound_B &= ((codes_BLK >= 0) & (codes_BLK < column.size)).flatten(1).all(1)
        return [key for key, sound in zip(batch.keys, sound_B.tolist(), strict=True) if not sound]

    def flops(self, samples: int) -> float:
        """Multiplications and additions of the matrix products and convolutions of one crop, forward and
        backward, which is twice the forward, less the gradient of the input itself; not counted: norms,
        activations, softmax and what a backward pass computes again."""
        model, conv = self.model, self.model.conv
        frames, width = model.frames(samples), model.width
        convolutions, before = [], 1
        for channels, kernel, stride in zip(conv.channels, conv.kernels, conv.strides, strict=True):
            samples = (samples - kernel) // stride + 1
            convolutions.append(2.0 * samples * channels * before * kernel)
            before = channels
        project = 2.0 * frames * model.front_width * width
        layer = 2.0 * frames * 4 * width**2 + 4.0 * frames**2 * width  # attention
        if model.block == "transformer":
            layer += 4.0 * frames * width * model.ffn
        else:
            layer += 8.0 * frames * width * model.ffn
            layer += 2.0 * frames * width * (3 * width + model.conformer_kernel)
        masked, head_width = MASKED_SHARE * frames, self.objective.head_width
        heads = sum(2.0 * masked * c.codebooks * head_width * (width + c.size) for c in self.codes)
        heads += 2.0 * masked * width * (self.cqt_bins or 0)
        forward = project + model.layers * layer + heads
        if model.positions == "conv":
            forward += 2.0 * frames * model.position_kernel * width * width / model.position_groups
        if model.front_end == "conv":
            return 3.0 * (sum(convolutions[1:]) + forward) + 2 * convolutions[0]
        return 3.0 * forward - project  # an FFT has no gradient
